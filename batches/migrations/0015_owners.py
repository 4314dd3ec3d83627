import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('batches', '0014_figures'),
        ('batchserver', '0003_owners'),
        ('files_api', '0003_owners'),
    ]

    operations = [
        migrations.AddField(
            model_name='batch',
            name='owner',
            field=models.ForeignKey(db_constraint=False, db_default=1, db_index=False, default=1, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='batchserver.owner'),
        ),
        migrations.AddField(
            model_name='webhookdelivery',
            name='is_for_owner',
            field=models.BooleanField(db_default=False, default=False, help_text="To the address of the batch's owner, not to WEBHOOK_URL."),
        ),
        migrations.AddIndex(
            model_name='batch',
            index=models.Index(fields=['owner', 'created_at', 'id'], name='batch_newest_of_owner'),
        ),
    ]
