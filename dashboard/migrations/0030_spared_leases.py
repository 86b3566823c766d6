from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Until when a dispatcher expires no lease, because nobody could renew one."""

    dependencies = [("dashboard", "0029_stop_one_run")]

    operations = [
        migrations.AddField(
            model_name="workernode",
            name="spares_until",
            field=models.DateTimeField(blank=True, null=True),
        ),
    ]
