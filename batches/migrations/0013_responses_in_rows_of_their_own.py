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
    ]
