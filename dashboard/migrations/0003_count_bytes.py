"""Steps of a job may be bytes, and a model has more of them than 32 bits hold."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("dashboard", "0002_cache_table"),
    ]

    operations = [
        migrations.AlterField(
            model_name="job",
            name="step",
            field=models.PositiveBigIntegerField(default=0),
        ),
        migrations.AlterField(
            model_name="job",
            name="total_steps",
            field=models.PositiveBigIntegerField(default=0),
        ),
    ]
