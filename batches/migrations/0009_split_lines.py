from typing import Any

from django.db import migrations, models


def split_to_one(apps: Any, schema_editor: Any) -> None:
    """Lines that were to be sent by themselves are in flight with no other."""
    lines = apps.get_model("batches", "Line").objects.using(schema_editor.connection.alias)
    lines.filter(needs_alone=True).update(most_together=1)


class Migration(migrations.Migration):
    dependencies = [
        ("batches", "0008_persons_and_others"),
    ]

    operations = [
        migrations.AddField(
            model_name="line",
            name="most_together",
            field=models.PositiveIntegerField(
                help_text="The server broke down while it was in flight: it is sent again among so many such lines at most.",
                null=True,
            ),
        ),
        migrations.RunPython(split_to_one, migrations.RunPython.noop),
        migrations.RemoveField(
            model_name="line",
            name="needs_alone",
        ),
        migrations.AddIndex(
            model_name="line",
            index=models.Index(
                condition=models.Q(("most_together__isnull", False)),
                fields=["part", "state", "most_together"],
                name="line_split",
            ),
        ),
    ]
