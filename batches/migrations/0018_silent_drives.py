from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('batches', '0017_counts_of_drives'),
    ]

    operations = [
        migrations.AddField(
            model_name='lease',
            name='silent_at',
            field=models.DateTimeField(help_text='From then on another drive may begin in its place, unless it gives a sign of life.', null=True),
        ),
    ]
