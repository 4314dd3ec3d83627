from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("batchserver", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="apikey",
            name="is_admin",
            field=models.BooleanField(
                default=False, help_text="May pull, create and delete models of the model server."
            ),
        ),
    ]
