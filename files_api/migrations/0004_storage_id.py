from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('files_api', '0003_owners'),
    ]

    operations = [
        migrations.CreateModel(
            name='Storage',
            fields=[
                ('id', models.PositiveSmallIntegerField(default=1, editable=False, primary_key=True, serialize=False)),
                ('mark', models.CharField(max_length=64)),
                ('seen_at', models.DateTimeField(help_text='When a process last said that it works with it.', null=True)),
            ],
        ),
    ]
