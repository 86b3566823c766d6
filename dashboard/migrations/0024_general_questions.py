from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """What base model and adapter answered to general questions; evaluations of before were not asked."""

    dependencies = [("dashboard", "0023_open_runs")]

    operations = [
        migrations.AddField(
            model_name="evaluation",
            name="general_questions",
            field=models.JSONField(default=dict),
        ),
    ]
