from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('batches', '0018_silent_drives'),
    ]

    operations = [
        migrations.AddField(
            model_name='batch',
            name='step_at',
            field=models.DateTimeField(help_text='When a step of it last began; empty: it had none yet.', null=True),
        ),
    ]
