from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('batchserver', '0004_clock_of_the_database'),
    ]

    operations = [
        migrations.AddField(
            model_name='owner',
            name='step_at',
            field=models.DateTimeField(editable=False, help_text='When a step of its batches last began.', null=True),
        ),
    ]
