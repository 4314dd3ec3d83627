import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('batchserver', '0003_owners'),
        ('files_api', '0002_uploads'),
    ]

    operations = [
        migrations.AddField(
            model_name='file',
            name='owner',
            field=models.ForeignKey(db_constraint=False, db_default=1, db_index=False, default=1, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='batchserver.owner'),
        ),
        migrations.AddField(
            model_name='upload',
            name='owner',
            field=models.ForeignKey(db_constraint=False, db_default=1, db_index=False, default=1, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='batchserver.owner'),
        ),
        migrations.AddIndex(
            model_name='file',
            index=models.Index(fields=['owner', 'created_at', 'id'], name='file_newest_of_owner'),
        ),
    ]
