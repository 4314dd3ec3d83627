from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('batches', '0013_responses_in_rows_of_their_own'),
    ]

    operations = [
        migrations.AddField(
            model_name='lease',
            name='in_flight',
            field=models.PositiveIntegerField(default=0, help_text="A drive's calls, as it last said."),
        ),
        migrations.CreateModel(
            name='Figures',
            fields=[
                ('source', models.CharField(max_length=64, primary_key=True, serialize=False)),
                ('values', models.JSONField(default=dict)),
            ],
            options={
                'verbose_name_plural': 'figures',
            },
        ),
    ]
