from typing import Any

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


def make_first(apps: Any, schema_editor: Any) -> None:
    """By a key of the database's own making, which is 1, as in an empty table of any database: Owner.FIRST."""
    apps.get_model('batchserver', 'Owner').objects.using(schema_editor.connection.alias).create(name='default')


class Migration(migrations.Migration):

    dependencies = [
        ('batchserver', '0002_keys_of_administrators'),
    ]

    operations = [
        migrations.CreateModel(
            name='Owner',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=100, unique=True)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('max_stored_bytes', models.PositiveBigIntegerField(blank=True, help_text='Of files, and of uploads.', null=True)),
                ('max_active_batches', models.PositiveIntegerField(blank=True, help_text='Batches that are not over.', null=True)),
                ('max_open_lines', models.PositiveIntegerField(blank=True, help_text='Lines of these without a result.', null=True)),
                ('max_requests_per_minute', models.PositiveIntegerField(blank=True, help_text='Calls of the API.', null=True)),
                ('max_streams', models.PositiveIntegerField(blank=True, help_text='Requests that are passed through to a model at once.', null=True)),
                ('webhook_url', models.CharField(blank=True, default='', help_text="Told of the owner's batches.", max_length=2000)),
                ('webhook_secret', models.CharField(blank=True, default='', help_text='Signs what is told.', max_length=255)),
                ('requests_until', models.FloatField(default=0, editable=False, help_text='Unix time until which the requests so far use the rate up.')),
                ('turn_at', models.DateTimeField(editable=False, help_text='When a turn of its lines last began.', null=True)),
            ],
        ),
        migrations.RunPython(make_first, migrations.RunPython.noop),
        migrations.AddField(
            model_name='apikey',
            name='expires_at',
            field=models.DateTimeField(blank=True, help_text='Not taken any more from then on; empty: never.', null=True),
        ),
        migrations.AddField(
            model_name='apikey',
            name='for_batches',
            field=models.BooleanField(db_default=True, default=True, help_text='Files, uploads and batches.'),
        ),
        migrations.AddField(
            model_name='apikey',
            name='for_chat',
            field=models.BooleanField(db_default=True, default=True, help_text='Requests to a model.'),
        ),
        migrations.AddField(
            model_name='apikey',
            name='last_used_at',
            field=models.DateTimeField(editable=False, help_text='To the minute.', null=True),
        ),
        migrations.AddField(
            model_name='apikey',
            name='owner',
            field=models.ForeignKey(db_constraint=False, db_default=1, db_index=False, default=1, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='batchserver.owner'),
        ),
    ]
