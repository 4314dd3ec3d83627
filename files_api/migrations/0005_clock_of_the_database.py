from django.db import migrations, models

import common.database


class Migration(migrations.Migration):

    dependencies = [
        ('files_api', '0004_storage_id'),
    ]

    operations = [
        # The default is the code's: no database changes, and SQLite would write the whole table anew.
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField(
                    model_name='file',
                    name='created_at',
                    field=models.DateTimeField(default=common.database.now),
                ),
                migrations.AlterField(
                    model_name='upload',
                    name='created_at',
                    field=models.DateTimeField(default=common.database.now),
                ),
                migrations.AlterField(
                    model_name='uploadpart',
                    name='created_at',
                    field=models.DateTimeField(default=common.database.now),
                ),
            ],
        ),
    ]
