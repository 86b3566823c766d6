from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Where a node runs: two containers may have nodes of one name. Those of before tell it when they start."""

    dependencies = [("dashboard", "0026_row_groups")]

    operations = [
        migrations.AddField(
            model_name="workernode",
            name="place",
            field=models.CharField(blank=True, default="", max_length=120),
            preserve_default=False,
        ),
    ]
