from django.db import migrations, models

import common.database


class Migration(migrations.Migration):

    dependencies = [
        ('batchserver', '0003_owners'),
    ]

    operations = [
        # The default is the code's: no database changes, and SQLite would write the whole table anew.
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField(
                    model_name='apikey',
                    name='created_at',
                    field=models.DateTimeField(default=common.database.now, editable=False),
                ),
                migrations.AlterField(
                    model_name='owner',
                    name='created_at',
                    field=models.DateTimeField(default=common.database.now, editable=False),
                ),
                migrations.AlterField(
                    model_name='rememberedanswer',
                    name='created_at',
                    field=models.DateTimeField(db_index=True, default=common.database.now),
                ),
            ],
        ),
    ]
