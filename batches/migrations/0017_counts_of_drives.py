import django.db.models.deletion
from django.db import migrations, models

# Fields of Batch that get a new name in Python; their columns keep the old one, which workers of earlier versions write.
FOLDED = {
    "completed": models.PositiveIntegerField,
    "failed": models.PositiveIntegerField,
    "input_tokens": models.PositiveBigIntegerField,
    "cached_tokens": models.PositiveBigIntegerField,
    "output_tokens": models.PositiveBigIntegerField,
    "reasoning_tokens": models.PositiveBigIntegerField,
    "repeated_finished": models.PositiveIntegerField,
}


class Migration(migrations.Migration):

    dependencies = [
        ('batches', '0016_clock_of_the_database'),
    ]

    operations = [
        migrations.CreateModel(
            name='Counts',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('completed', models.PositiveBigIntegerField(default=0)),
                ('failed', models.PositiveBigIntegerField(default=0)),
                ('input_tokens', models.PositiveBigIntegerField(default=0)),
                ('cached_tokens', models.PositiveBigIntegerField(default=0)),
                ('output_tokens', models.PositiveBigIntegerField(default=0)),
                ('reasoning_tokens', models.PositiveBigIntegerField(default=0)),
                ('repeated_finished', models.PositiveBigIntegerField(default=0)),
                ('open_after', models.PositiveBigIntegerField(help_text='The drive has taken places after this one and not stored their lines yet; empty: none.', null=True)),
                ('batch', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='counts', to='batches.batch')),
                ('lease', models.ForeignKey(db_constraint=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='batches.lease')),
            ],
            options={
                'verbose_name_plural': 'counts',
                'constraints': [models.UniqueConstraint(fields=('batch', 'lease'), name='counts_once')],
            },
        ),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                operation
                for name, field in FOLDED.items()
                for operation in (
                    migrations.RenameField('batch', name, f'folded_{name}'),
                    migrations.AlterField('batch', f'folded_{name}', field(db_column=name, default=0)),
                )
            ] + [
                migrations.AlterField(
                    model_name='batch',
                    name='last_place',
                    field=models.PositiveBigIntegerField(default=0, help_text='The highest `place` that its lines were given.'),
                ),
            ],
        ),
    ]
