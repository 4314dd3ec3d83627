from django.db import migrations, models

import common.database


class Migration(migrations.Migration):

    dependencies = [
        ('batches', '0015_owners'),
    ]

    operations = [
        # The default is the code's: no database changes, and SQLite would write the whole table anew.
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField(
                    model_name='answer',
                    name='created_at',
                    field=models.DateTimeField(default=common.database.now),
                ),
                migrations.AlterField(
                    model_name='batch',
                    name='created_at',
                    field=models.DateTimeField(default=common.database.now),
                ),
                migrations.AlterField(
                    model_name='hold',
                    name='created_at',
                    field=models.DateTimeField(default=common.database.now),
                ),
                migrations.AlterField(
                    model_name='pausedmodel',
                    name='since',
                    field=models.DateTimeField(default=common.database.now, help_text='Failing for this reason, while the backend answers.'),
                ),
            ],
        ),
    ]
