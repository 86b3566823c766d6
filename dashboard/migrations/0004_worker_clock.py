"""How far a worker's own clock is ahead of the database's, in seconds."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("dashboard", "0003_count_bytes"),
    ]

    operations = [
        migrations.AddField(
            model_name="workernode",
            name="clock_ahead",
            field=models.FloatField(blank=True, null=True),
        ),
    ]
