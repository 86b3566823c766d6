"""What came to a study after its start, and the pattern that its answers are scored by."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("dashboard", "0019_compute_budgets")]

    operations = [
        migrations.AddField("study", "additions", models.JSONField(default=list)),
        migrations.AddField("study", "pattern", models.CharField(blank=True, max_length=200)),
    ]
