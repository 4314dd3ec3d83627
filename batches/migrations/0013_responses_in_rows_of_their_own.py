import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('batches', '0012_order_of_finishing'),
    ]

    operations = [
        migrations.CreateModel(
            name='Response',
            fields=[
                ('line', models.OneToOneField(on_delete=django.db.models.deletion.DO_NOTHING, primary_key=True, related_name='response', serialize=False, to='batches.line')),
                ('body', models.TextField()),
            ],
        ),
        # The replies of batches that are not over.
        migrations.RunSQL(
            "INSERT INTO batches_response (line_id, body) SELECT id, response FROM batches_line WHERE response <> ''",
            migrations.RunSQL.noop,
        ),
        migrations.RemoveField(
            model_name='line',
            name='response',
        ),
        migrations.CreateModel(
            name='ResultPage',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('number', models.PositiveIntegerField(help_text='Of its first line.')),
                ('output_offset', models.PositiveBigIntegerField()),
                ('error_offset', models.PositiveBigIntegerField()),
                ('batch', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='result_pages', to='batches.batch')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('batch', 'number'), name='result_page_once')],
            },
        ),
    ]
