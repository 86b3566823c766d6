"""Every table of the first release."""

import dashboard.models.jobs.webhook
import django.core.validators
import django.db.models.deletion
import django.db.models.functions.datetime
import django.db.models.functions.text
import django.utils.timezone
from django.conf import settings
from django.core.management import call_command
from django.db import migrations, models


def create_cache_table(apps, schema_editor):
    """Create the database cache, in which sign-in limits count across processes."""
    call_command("createcachetable", database=schema_editor.connection.alias, verbosity=0)


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('auth', '0012_alter_user_first_name_max_length'),
    ]

    operations = [
        migrations.CreateModel(
            name='MetricSeries',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=60)),
                ('count', models.PositiveIntegerField(default=0)),
                ('first_step', models.PositiveIntegerField(default=0)),
                ('last_step', models.PositiveIntegerField(default=0)),
                ('last', models.FloatField(blank=True, null=True)),
                ('low', models.FloatField(blank=True, null=True)),
                ('high', models.FloatField(blank=True, null=True)),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='Project',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=100, unique=True, verbose_name='name')),
                ('slug', models.SlugField(max_length=80, unique=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='SetupCode',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('digest', models.CharField(max_length=64)),
                ('tries', models.PositiveSmallIntegerField(default=0)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name='WorkerNode',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=120, unique=True)),
                ('kind', models.CharField(choices=[('worker', 'Worker'), ('dispatcher', 'Dispatcher')], default='worker', max_length=12)),
                ('queue', models.CharField(blank=True, max_length=10)),
                ('host', models.CharField(max_length=120)),
                ('pid', models.PositiveIntegerField()),
                ('place', models.CharField(blank=True, max_length=120)),
                ('device', models.CharField(blank=True, max_length=120)),
                ('memory_bytes', models.BigIntegerField(default=0)),
                ('gpu', models.PositiveSmallIntegerField(blank=True, null=True)),
                ('loads_4bit', models.BooleanField(default=False)),
                ('started_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('heartbeat_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('stopped_at', models.DateTimeField(blank=True, null=True)),
                ('draining', models.BooleanField(default=False)),
                ('processes', models.PositiveSmallIntegerField(default=1)),
                ('paused_at', models.DateTimeField(blank=True, null=True)),
                ('paused_by', models.CharField(blank=True, max_length=254)),
                ('leads_until', models.DateTimeField(blank=True, null=True)),
                ('grants_grace_until', models.DateTimeField(blank=True, null=True)),
                ('clock_ahead', models.FloatField(blank=True, null=True)),
                ('broker_silent_since', models.DateTimeField(blank=True, null=True)),
                ('free_bytes', models.BigIntegerField(blank=True, null=True)),
            ],
            options={
                'ordering': ['kind', 'name'],
            },
        ),
        migrations.CreateModel(
            name='User',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('password', models.CharField(max_length=128, verbose_name='password')),
                ('last_login', models.DateTimeField(blank=True, null=True, verbose_name='last login')),
                ('is_superuser', models.BooleanField(default=False, help_text='Designates that this user has all permissions without explicitly assigning them.', verbose_name='superuser status')),
                ('first_name', models.CharField(blank=True, max_length=150, verbose_name='first name')),
                ('last_name', models.CharField(blank=True, max_length=150, verbose_name='last name')),
                ('is_staff', models.BooleanField(default=False, help_text='Designates whether the user can log into this admin site.', verbose_name='staff status')),
                ('is_active', models.BooleanField(default=True, help_text='Designates whether this user should be treated as active. Unselect this instead of deleting accounts.', verbose_name='active')),
                ('date_joined', models.DateTimeField(default=django.utils.timezone.now, verbose_name='date joined')),
                ('email', models.EmailField(max_length=254, unique=True, verbose_name='email address')),
                ('groups', models.ManyToManyField(blank=True, help_text='The groups this user belongs to. A user will get all permissions granted to each of their groups.', related_name='user_set', related_query_name='user', to='auth.group', verbose_name='groups')),
                ('user_permissions', models.ManyToManyField(blank=True, help_text='Specific permissions for this user.', related_name='user_set', related_query_name='user', to='auth.permission', verbose_name='user permissions')),
            ],
        ),
        migrations.CreateModel(
            name='BaseModel',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('source', models.CharField(choices=[('bundled', 'Bundled'), ('folder', 'Folder'), ('hub', 'Hub')], max_length=10)),
                ('name', models.CharField(max_length=120, verbose_name='name')),
                ('hub_id', models.CharField(max_length=200, verbose_name='public name or hub id')),
                ('revision', models.CharField(blank=True, max_length=100, verbose_name='revision')),
                ('folder', models.CharField(blank=True, max_length=255)),
                ('path', models.CharField(blank=True, max_length=1000)),
                ('sha256', models.CharField(blank=True, max_length=64)),
                ('license', models.CharField(blank=True, max_length=100)),
                ('parameters', models.BigIntegerField(blank=True, null=True)),
                ('census', models.JSONField(blank=True, null=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('added_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='Adapter',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=120, verbose_name='name')),
                ('version', models.PositiveIntegerField()),
                ('stage', models.CharField(choices=[('draft', 'Draft'), ('approved', 'Approved'), ('retired', 'Retired')], default='draft', max_length=10)),
                ('folder', models.CharField(max_length=64)),
                ('files', models.JSONField()),
                ('sha256', models.CharField(max_length=64)),
                ('size_bytes', models.BigIntegerField()),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='adapters', to='dashboard.basemodel')),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='adapters', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='Dataset',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=120, verbose_name='name')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('created_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='datasets', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='DatasetVersion',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('version', models.PositiveIntegerField()),
                ('upload', models.CharField(max_length=100)),
                ('filename', models.CharField(max_length=255)),
                ('size_bytes', models.BigIntegerField()),
                ('prompt_column', models.CharField(blank=True, max_length=200)),
                ('completion_column', models.CharField(blank=True, max_length=200)),
                ('group_column', models.CharField(blank=True, max_length=200)),
                ('skip_bad_rows', models.BooleanField(default=False)),
                ('seed', models.BigIntegerField(default=42)),
                ('sha256', models.CharField(blank=True, max_length=64)),
                ('test_sha256', models.CharField(blank=True, max_length=64)),
                ('rows', models.PositiveIntegerField(blank=True, null=True)),
                ('splits', models.JSONField(default=dict)),
                ('report', models.JSONField(default=dict)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('created_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('dataset', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='versions', to='dashboard.dataset')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='Evaluation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('subject', models.CharField(choices=[('base', 'Base model'), ('adapter', 'Adapter')], max_length=10)),
                ('key', models.CharField(blank=True, max_length=64)),
                ('number_format', models.CharField(blank=True, max_length=160)),
                ('split', models.CharField(max_length=12)),
                ('rows', models.PositiveIntegerField(blank=True, null=True)),
                ('metrics', models.JSONField(default=dict)),
                ('general_questions', models.JSONField(default=dict)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('adapter', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='evaluations', to='dashboard.adapter')),
                ('base_evaluation', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='adapter_evaluations', to='dashboard.evaluation')),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='evaluations', to='dashboard.basemodel')),
                ('dataset_version', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='evaluations', to='dashboard.datasetversion')),
                ('reused_from', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='reuses', to='dashboard.evaluation')),
            ],
            options={
                'ordering': ['pk'],
            },
        ),
        migrations.CreateModel(
            name='EvaluationItem',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('row', models.PositiveIntegerField()),
                ('group', models.PositiveIntegerField(blank=True, null=True)),
                ('prompt', models.TextField()),
                ('expected', models.TextField()),
                ('output', models.TextField()),
                ('scores', models.JSONField(default=dict)),
                ('evaluation', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='items', to='dashboard.evaluation')),
            ],
            options={
                'ordering': ['evaluation', 'row'],
            },
        ),
        migrations.CreateModel(
            name='Installation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('only', models.BooleanField(default=True, unique=True)),
                ('key', models.CharField(max_length=32)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('only', True)), name='installation_only_one')],
            },
        ),
        migrations.CreateModel(
            name='Job',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('import', 'Import'), ('inspect', 'Inspect'), ('train', 'Fine-tune'), ('evaluate', 'Evaluate'), ('judge', 'Judge answers'), ('serve', 'Answer prompts'), ('export', 'Export')], max_length=10)),
                ('queue', models.CharField(choices=[('gpu', 'Training'), ('cpu', 'Light work'), ('serve', 'Playground and chat')], max_length=10)),
                ('state', models.CharField(choices=[('queued', 'Waiting'), ('starting', 'Starting'), ('running', 'Running'), ('finalizing', 'Saving'), ('cancelling', 'Stopping'), ('interrupted', 'Interrupted, will continue by itself'), ('succeeded', 'Finished'), ('failed', 'Failed'), ('cancelled', 'Stopped')], default='queued', max_length=12)),
                ('spec', models.JSONField()),
                ('priority', models.SmallIntegerField(choices=[(1, 'High'), (0, 'Normal'), (-1, 'Low')], default=0)),
                ('needs_4bit', models.BooleanField(default=False)),
                ('idempotency_key', models.CharField(blank=True, max_length=200)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('run_after', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('started_at', models.DateTimeField(blank=True, null=True)),
                ('finished_at', models.DateTimeField(blank=True, null=True)),
                ('attempt', models.PositiveIntegerField(default=0)),
                ('failed_attempts', models.PositiveSmallIntegerField(default=0)),
                ('ignored_attempts', models.PositiveIntegerField(default=0)),
                ('lease_until', models.DateTimeField(blank=True, null=True)),
                ('worker', models.CharField(blank=True, max_length=120)),
                ('slot', models.CharField(blank=True, max_length=120, null=True)),
                ('host', models.CharField(blank=True, max_length=120)),
                ('pid', models.PositiveIntegerField(blank=True, null=True)),
                ('pid_started', models.FloatField(blank=True, null=True)),
                ('child_pid', models.PositiveIntegerField(blank=True, null=True)),
                ('child_started', models.FloatField(blank=True, null=True)),
                ('phase', models.CharField(blank=True, max_length=20)),
                ('step', models.PositiveBigIntegerField(default=0)),
                ('total_steps', models.PositiveBigIntegerField(default=0)),
                ('eta_seconds', models.FloatField(blank=True, null=True)),
                ('error_code', models.CharField(blank=True, max_length=40)),
                ('error_message', models.TextField(blank=True)),
                ('keep', models.CharField(blank=True, choices=[('', 'Nothing'), ('adapter', 'The best weights so far, as an adapter'), ('checkpoint', 'The checkpoint, to resume later')], max_length=10)),
                ('created_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='jobs', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='jobs', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.AddField(
            model_name='evaluation',
            name='job',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='evaluations', to='dashboard.job'),
        ),
        migrations.AddField(
            model_name='evaluation',
            name='judge_job',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='judged_evaluations', to='dashboard.job'),
        ),
        migrations.AddField(
            model_name='datasetversion',
            name='job',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='dataset_versions', to='dashboard.job'),
        ),
        migrations.AddField(
            model_name='basemodel',
            name='job',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='base_models', to='dashboard.job'),
        ),
        migrations.AddField(
            model_name='basemodel',
            name='serving_job',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='served_base_models', to='dashboard.job'),
        ),
        migrations.CreateModel(
            name='JobEvent',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('seq', models.PositiveIntegerField()),
                ('attempt', models.PositiveIntegerField()),
                ('event', models.CharField(max_length=20)),
                ('from_state', models.CharField(max_length=12)),
                ('to_state', models.CharField(max_length=12)),
                ('actor', models.CharField(blank=True, max_length=254)),
                ('text', models.TextField(blank=True)),
                ('level', models.CharField(default='info', max_length=10)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('job', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='events', to='dashboard.job')),
            ],
            options={
                'ordering': ['job', 'seq'],
            },
        ),
        migrations.CreateModel(
            name='MetricChunk',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('first_step', models.PositiveIntegerField()),
                ('last_step', models.PositiveIntegerField()),
                ('count', models.PositiveIntegerField()),
                ('steps', models.BinaryField()),
                ('values', models.BinaryField()),
                ('series', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='chunks', to='dashboard.metricseries')),
            ],
            options={
                'ordering': ['series', 'first_step'],
            },
        ),
        migrations.CreateModel(
            name='Outbox',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('sent_at', models.DateTimeField(blank=True, null=True)),
                ('job', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='outbox', to='dashboard.job')),
            ],
        ),
        migrations.CreateModel(
            name='Membership',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('role', models.CharField(choices=[('viewer', 'Viewer'), ('editor', 'Editor'), ('manager', 'Manager')], max_length=10, verbose_name='role')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('user', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='memberships', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='memberships', to='dashboard.project')),
            ],
        ),
        migrations.CreateModel(
            name='Invitation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('email', models.EmailField(max_length=254, verbose_name='email address')),
                ('role', models.CharField(choices=[('viewer', 'Viewer'), ('editor', 'Editor'), ('manager', 'Manager')], max_length=10, verbose_name='role')),
                ('digest', models.CharField(max_length=64, unique=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('expires_at', models.DateTimeField()),
                ('accepted_at', models.DateTimeField(blank=True, null=True)),
                ('invited_by', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='invitations', to='dashboard.project')),
            ],
        ),
        migrations.CreateModel(
            name='Export',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('format', models.CharField(choices=[('float32', 'Safetensors, float32'), ('bfloat16', 'Safetensors, bfloat16'), ('gguf-f16', 'GGUF, F16'), ('gguf-q8_0', 'GGUF, Q8_0')], max_length=10)),
                ('expected_bytes', models.BigIntegerField()),
                ('folder', models.CharField(blank=True, max_length=64)),
                ('filename', models.CharField(blank=True, max_length=255)),
                ('sha256', models.CharField(blank=True, max_length=64)),
                ('size_bytes', models.BigIntegerField(blank=True, null=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('adapter', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='exports', to='dashboard.adapter')),
                ('job', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='exports', to='dashboard.job')),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='exports', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.AddField(
            model_name='evaluation',
            name='project',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='evaluations', to='dashboard.project'),
        ),
        migrations.AddField(
            model_name='datasetversion',
            name='project',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='dataset_versions', to='dashboard.project'),
        ),
        migrations.CreateModel(
            name='ComputeBudget',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('hours', models.FloatField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(0), django.core.validators.MaxValueValidator(1000000)], verbose_name='hours per month')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('set_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='compute_budgets', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='CleanUp',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('requested_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('done_at', models.DateTimeField(blank=True, null=True)),
                ('freed_bytes', models.BigIntegerField(default=0)),
                ('requested_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='clean_ups', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.AddField(
            model_name='basemodel',
            name='project',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='base_models', to='dashboard.project'),
        ),
        migrations.CreateModel(
            name='ApiToken',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=100, verbose_name='name')),
                ('prefix', models.CharField(max_length=12)),
                ('digest', models.CharField(max_length=64, unique=True)),
                ('scope', models.CharField(choices=[('read', 'Read'), ('write', 'Read and write')], default='read', max_length=10, verbose_name='scope')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('expires_at', models.DateTimeField(blank=True, null=True, verbose_name='expires')),
                ('last_used_at', models.DateTimeField(blank=True, null=True)),
                ('revoked_at', models.DateTimeField(blank=True, null=True)),
                ('user', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='tokens', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='tokens', to='dashboard.project')),
            ],
            options={
                'ordering': ['-created_at'],
            },
        ),
        migrations.CreateModel(
            name='PromptSet',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=80, verbose_name='name')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('created_by', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='prompt_sets', to='dashboard.project')),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='Publication',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('adapters', 'Adapter'), ('datasets', 'Dataset version'), ('exports', 'Export')], max_length=10)),
                ('folder', models.CharField(max_length=64)),
                ('begun_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                'indexes': [models.Index(fields=['begun_at'], name='dashboard_p_begun_a_f88315_idx')],
                'constraints': [models.UniqueConstraint(fields=('kind', 'folder'), name='publication_once')],
            },
        ),
        migrations.CreateModel(
            name='SavedPrompt',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('system', models.TextField(blank=True)),
                ('prompt', models.TextField()),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('created_by', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('prompt_set', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='prompts', to='dashboard.promptset')),
            ],
            options={
                'ordering': ['pk'],
            },
        ),
        migrations.CreateModel(
            name='PromptAnswer',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('text', models.TextField(blank=True)),
                ('is_cut', models.BooleanField(default=False)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('adapter', models.ForeignKey(null=True, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.adapter')),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.basemodel')),
                ('prompt', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='answers', to='dashboard.savedprompt')),
            ],
            options={
                'ordering': ['pk'],
            },
        ),
        migrations.CreateModel(
            name='SavedView',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('page', models.CharField(choices=[('compare', 'Compare'), ('training-run-index', 'Runs'), ('adapter-index', 'Adapters')], default='compare', max_length=20)),
                ('name', models.CharField(max_length=80, verbose_name='name')),
                ('query', models.CharField(max_length=2000)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('created_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='saved_views', to='dashboard.project')),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='ScoringTime',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('device', models.CharField(max_length=120)),
                ('dtype', models.CharField(max_length=20)),
                ('formula', models.PositiveSmallIntegerField()),
                ('estimated_seconds', models.FloatField()),
                ('seconds', models.FloatField()),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.basemodel')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='StorageUse',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('uploads', 'Uploads'), ('datasets', 'Datasets'), ('adapters', 'Adapters'), ('exports', 'Exports'), ('checkpoints', 'Checkpoints'), ('work', 'Work in progress'), ('logs', 'Logs'), ('archives', 'Prepared downloads'), ('models', 'Base models'), ('database', 'Database'), ('other', 'Other files')], max_length=12)),
                ('bytes', models.BigIntegerField(default=0)),
                ('count', models.PositiveIntegerField(default=0)),
                ('removable_bytes', models.BigIntegerField(default=0)),
                ('removable_count', models.PositiveIntegerField(default=0)),
                ('biggest', models.JSONField(default=list)),
                ('measured_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('project', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='storage_uses', to='dashboard.project')),
            ],
            options={
                'ordering': ['-bytes', 'kind'],
            },
        ),
        migrations.CreateModel(
            name='Study',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=120, verbose_name='name')),
                ('budget', models.CharField(choices=[('equal-rank', 'Equal rank: what you would do in practice'), ('equal-parameters', 'Equal parameters: a fair test of the modules')], default='equal-rank', max_length=20)),
                ('metric', models.CharField(max_length=20)),
                ('margin', models.FloatField()),
                ('seeds', models.JSONField()),
                ('learning_rates', models.JSONField(default=list)),
                ('pattern', models.CharField(blank=True, max_length=200)),
                ('test_rows', models.PositiveIntegerField(default=1000)),
                ('reuse', models.BooleanField(default=True)),
                ('max_hours', models.FloatField(blank=True, null=True)),
                ('additions', models.JSONField(default=list)),
                ('forecast_seconds', models.FloatField(default=0)),
                ('forecast', models.JSONField(default=dict)),
                ('stored_result', models.JSONField(default=dict)),
                ('stored_summary', models.JSONField(default=dict)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('cancelled_at', models.DateTimeField(blank=True, null=True)),
                ('stop_reason', models.TextField(blank=True)),
                ('finished_at', models.DateTimeField(blank=True, null=True)),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='studies', to='dashboard.basemodel')),
                ('confirmed_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('created_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('dataset_version', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='studies', to='dashboard.datasetversion')),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='studies', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='ShareLink',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('digest', models.CharField(max_length=64, unique=True)),
                ('with_rows', models.BooleanField(default=False)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('expires_at', models.DateTimeField()),
                ('revoked_at', models.DateTimeField(blank=True, null=True)),
                ('opens', models.PositiveIntegerField(default=0)),
                ('created_by', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='share_links', to='dashboard.project')),
                ('study', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='share_links', to='dashboard.study')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='Decision',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('arm', models.CharField(max_length=120)),
                ('reason', models.TextField(verbose_name='reason')),
                ('approved', models.BooleanField(default=False)),
                ('decided_at', models.DateTimeField(auto_now_add=True)),
                ('adapter', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='decisions', to='dashboard.adapter')),
                ('decided_by', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='decisions', to='dashboard.project')),
                ('study', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='decisions', to='dashboard.study')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='Tag',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=40, verbose_name='tag')),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='tags', to='dashboard.project')),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='TargetModuleConfig',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('slug', models.SlugField(blank=True, max_length=60, null=True)),
                ('name', models.CharField(max_length=120, verbose_name='name')),
                ('description', models.TextField(blank=True, verbose_name='description')),
                ('roles', models.JSONField(default=list)),
                ('selection', models.JSONField(blank=True, null=True)),
                ('evidence', models.TextField(blank=True, verbose_name='evidence')),
                ('version', models.PositiveIntegerField(default=1)),
                ('position', models.PositiveSmallIntegerField(default=100)),
                ('made_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='target_module_configs', to='dashboard.project')),
            ],
            options={
                'ordering': ['position', 'pk'],
            },
        ),
        migrations.CreateModel(
            name='StudyArm',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('position', models.PositiveSmallIntegerField()),
                ('name', models.CharField(max_length=120)),
                ('is_reference', models.BooleanField(default=False)),
                ('hyperparameters', models.JSONField()),
                ('learning_rate', models.FloatField(blank=True, null=True)),
                ('verdict', models.JSONField(blank=True, default=dict)),
                ('study', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='arms', to='dashboard.study')),
                ('target_module_config', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='study_arms', to='dashboard.targetmoduleconfig')),
            ],
            options={
                'ordering': ['study', 'position'],
            },
        ),
        migrations.CreateModel(
            name='TrainingRun',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=120, verbose_name='name')),
                ('rung', models.PositiveSmallIntegerField(blank=True, null=True)),
                ('spec', models.JSONField(default=dict)),
                ('spec_digest', models.CharField(blank=True, max_length=64)),
                ('forecast', models.JSONField(default=dict)),
                ('measured', models.JSONField(default=dict)),
                ('adjustments', models.JSONField(default=list)),
                ('metadata', models.JSONField(default=dict)),
                ('confirmations', models.JSONField(default=list)),
                ('outcome', models.CharField(blank=True, choices=[('succeeded', 'Finished'), ('failed', 'Failed'), ('cancelled', 'Stopped'), ('stopped_early', 'Stopped early, best kept')], max_length=14)),
                ('error_code', models.CharField(blank=True, max_length=40)),
                ('error_message', models.TextField(blank=True)),
                ('ended_step', models.PositiveIntegerField(blank=True, null=True)),
                ('training_seconds', models.FloatField(blank=True, null=True)),
                ('note', models.TextField(blank=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='training_runs', to='dashboard.basemodel')),
                ('confirmed_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('created_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('dataset_version', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='training_runs', to='dashboard.datasetversion')),
                ('job', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='training_runs', to='dashboard.job')),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='training_runs', to='dashboard.project')),
                ('reused_from', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='reuses', to='dashboard.trainingrun')),
                ('study_arm', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='runs', to='dashboard.studyarm')),
                ('tags', models.ManyToManyField(blank=True, related_name='training_runs', to='dashboard.tag')),
                ('target_module_config', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='training_runs', to='dashboard.targetmoduleconfig')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='RunScore',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('metric', models.CharField(max_length=20)),
                ('value', models.FloatField()),
                ('base', models.FloatField(blank=True, null=True)),
                ('run', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='stored_scores', to='dashboard.trainingrun')),
            ],
            options={
                'ordering': ['metric'],
            },
        ),
        migrations.AddField(
            model_name='metricseries',
            name='run',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='metric_series', to='dashboard.trainingrun'),
        ),
        migrations.AddField(
            model_name='evaluation',
            name='run',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='evaluations', to='dashboard.trainingrun'),
        ),
        migrations.CreateModel(
            name='Calibration',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('device', models.CharField(max_length=120)),
                ('dtype', models.CharField(max_length=20)),
                ('formula', models.PositiveSmallIntegerField()),
                ('estimated_memory_bytes', models.BigIntegerField()),
                ('estimated_training_seconds', models.FloatField()),
                ('expected_memory_bytes', models.BigIntegerField(default=0)),
                ('expected_seconds', models.FloatField(default=0)),
                ('memory_bytes', models.BigIntegerField()),
                ('training_seconds', models.FloatField()),
                ('seconds', models.FloatField()),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.basemodel')),
                ('run', models.OneToOneField(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='calibration', to='dashboard.trainingrun')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.AddField(
            model_name='adapter',
            name='run',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='adapter', to='dashboard.trainingrun'),
        ),
        migrations.CreateModel(
            name='TryOutLink',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('with_base', models.BooleanField()),
                ('system', models.TextField(blank=True)),
                ('temperature', models.FloatField()),
                ('max_tokens', models.PositiveIntegerField()),
                ('with_names', models.BooleanField(default=False)),
                ('digest', models.CharField(max_length=64, unique=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('expires_at', models.DateTimeField()),
                ('revoked_at', models.DateTimeField(blank=True, null=True)),
                ('most_prompts', models.PositiveIntegerField()),
                ('prompts', models.PositiveIntegerField(default=0)),
                ('adapters', models.ManyToManyField(related_name='+', to='dashboard.adapter')),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.basemodel')),
                ('created_by', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='try_out_links', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='BlindComparison',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('system', models.TextField(blank=True)),
                ('prompt', models.TextField()),
                ('prompt_digest', models.CharField(max_length=64)),
                ('answer_a', models.TextField(blank=True)),
                ('answer_b', models.TextField(blank=True)),
                ('vote', models.CharField(blank=True, choices=[('a', 'A is better'), ('equal', 'Equal'), ('b', 'B is better')], max_length=5)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('voted_at', models.DateTimeField(blank=True, null=True)),
                ('adapter_a', models.ForeignKey(null=True, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.adapter')),
                ('adapter_b', models.ForeignKey(null=True, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.adapter')),
                ('base_model', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.basemodel')),
                ('voter', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='blind_comparisons', to='dashboard.project')),
                ('link', models.ForeignKey(null=True, on_delete=django.db.models.deletion.CASCADE, related_name='comparisons', to='dashboard.tryoutlink')),
            ],
            options={
                'ordering': ['pk'],
            },
        ),
        migrations.CreateModel(
            name='Vote',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('is_right', models.BooleanField()),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('item', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='votes', to='dashboard.evaluationitem')),
                ('voter', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['pk'],
            },
        ),
        migrations.CreateModel(
            name='Webhook',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('url', models.CharField(max_length=300, verbose_name='address')),
                ('salt', models.CharField(default=dashboard.models.jobs.webhook.salt, max_length=32)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('created_by', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('project', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='webhooks', to='dashboard.project')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='WebhookDelivery',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('event', models.CharField(max_length=40)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('tries', models.PositiveSmallIntegerField(default=0)),
                ('next_at', models.DateTimeField(blank=True, db_default=django.db.models.functions.datetime.Now(), null=True)),
                ('arrived_at', models.DateTimeField(blank=True, null=True)),
                ('result', models.CharField(blank=True, max_length=200)),
                ('run', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='dashboard.trainingrun')),
                ('webhook', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='deliveries', to='dashboard.webhook')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.AddConstraint(
            model_name='user',
            constraint=models.UniqueConstraint(django.db.models.functions.text.Lower('email'), name='user_email_unique_in_any_case'),
        ),
        migrations.AddConstraint(
            model_name='evaluationitem',
            constraint=models.UniqueConstraint(fields=('evaluation', 'row'), name='evaluation_item_once_per_row'),
        ),
        migrations.AddConstraint(
            model_name='jobevent',
            constraint=models.UniqueConstraint(fields=('job', 'seq'), name='job_event_seq_once'),
        ),
        migrations.AddConstraint(
            model_name='metricchunk',
            constraint=models.UniqueConstraint(fields=('series', 'first_step'), name='metric_chunk_starts_once'),
        ),
        migrations.AddIndex(
            model_name='outbox',
            index=models.Index(fields=['sent_at'], name='dashboard_o_sent_at_5c53f4_idx'),
        ),
        migrations.AddConstraint(
            model_name='membership',
            constraint=models.UniqueConstraint(fields=('project', 'user'), name='membership_once_per_project'),
        ),
        migrations.AddConstraint(
            model_name='membership',
            constraint=models.CheckConstraint(condition=models.Q(('role__in', ['viewer', 'editor', 'manager'])), name='membership_role_known'),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(fields=['queue', 'state', 'run_after', 'priority', 'project', 'needs_4bit'], name='job_order'),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(fields=['queue', 'started_at', 'project'], name='job_starts'),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(fields=['project', 'queue', 'finished_at', 'created_by'], name='job_used'),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(fields=['kind', 'state', 'finished_at'], name='dashboard_j_kind_9f8bc6_idx'),
        ),
        migrations.AddIndex(
            model_name='job',
            index=models.Index(fields=['state', 'lease_until'], name='dashboard_j_state_ea721e_idx'),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.CheckConstraint(condition=models.Q(('state__in', ['queued', 'starting', 'running', 'finalizing', 'cancelling', 'interrupted', 'succeeded', 'failed', 'cancelled'])), name='job_state_known'),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.CheckConstraint(condition=models.Q(('keep__in', ['', 'adapter', 'checkpoint'])), name='job_keep_known'),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('state__in', ['succeeded', 'failed', 'cancelled']), _negated=True), ('finished_at__isnull', False), _connector='OR'), name='job_finished_has_an_end'),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.UniqueConstraint(condition=models.Q(('state__in', ['starting', 'running', 'finalizing', 'cancelling'])), fields=('slot',), name='job_one_live_per_slot'),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.UniqueConstraint(condition=models.Q(('idempotency_key', ''), _negated=True), fields=('project', 'idempotency_key'), name='job_idempotency_key_once_per_project'),
        ),
        migrations.AddConstraint(
            model_name='invitation',
            constraint=models.CheckConstraint(condition=models.Q(('role__in', ['viewer', 'editor', 'manager'])), name='invitation_role_known'),
        ),
        migrations.AddConstraint(
            model_name='export',
            constraint=models.UniqueConstraint(fields=('adapter', 'format'), name='export_once_per_format'),
        ),
        migrations.AddConstraint(
            model_name='export',
            constraint=models.CheckConstraint(condition=models.Q(('format__in', ['float32', 'bfloat16', 'gguf-f16', 'gguf-q8_0'])), name='export_format_known'),
        ),
        migrations.AddConstraint(
            model_name='datasetversion',
            constraint=models.UniqueConstraint(fields=('dataset', 'version'), name='dataset_version_once'),
        ),
        migrations.AddConstraint(
            model_name='dataset',
            constraint=models.UniqueConstraint(fields=('project', 'name'), name='dataset_name_once_per_project'),
        ),
        migrations.AddConstraint(
            model_name='computebudget',
            constraint=models.CheckConstraint(condition=models.Q(('hours', None), ('hours__gte', 0), _connector='OR'), name='compute_budget_not_negative'),
        ),
        migrations.AddConstraint(
            model_name='basemodel',
            constraint=models.UniqueConstraint(condition=models.Q(('source', 'bundled')), fields=('source',), name='base_model_bundled_once'),
        ),
        migrations.AddConstraint(
            model_name='basemodel',
            constraint=models.UniqueConstraint(fields=('project', 'hub_id', 'revision'), name='base_model_once_per_project'),
        ),
        migrations.AddConstraint(
            model_name='apitoken',
            constraint=models.CheckConstraint(condition=models.Q(('scope__in', ['read', 'write'])), name='token_scope_known'),
        ),
        migrations.AddConstraint(
            model_name='promptset',
            constraint=models.UniqueConstraint(fields=('project', 'name'), name='prompt_set_once_per_project'),
        ),
        migrations.AddConstraint(
            model_name='promptanswer',
            constraint=models.UniqueConstraint(fields=('prompt', 'adapter'), name='prompt_answer_once_per_adapter'),
        ),
        migrations.AddConstraint(
            model_name='promptanswer',
            constraint=models.UniqueConstraint(condition=models.Q(('adapter', None)), fields=('prompt', 'base_model'), name='prompt_answer_once_per_base_model'),
        ),
        migrations.AddConstraint(
            model_name='savedview',
            constraint=models.UniqueConstraint(fields=('project', 'page', 'name'), name='saved_view_once_per_project'),
        ),
        migrations.AddConstraint(
            model_name='savedview',
            constraint=models.CheckConstraint(condition=models.Q(('page__in', ['compare', 'training-run-index', 'adapter-index'])), name='saved_view_page_known'),
        ),
        migrations.AddConstraint(
            model_name='storageuse',
            constraint=models.UniqueConstraint(fields=('kind', 'project'), name='storage_use_once_per_project'),
        ),
        migrations.AddConstraint(
            model_name='storageuse',
            constraint=models.UniqueConstraint(condition=models.Q(('project', None)), fields=('kind',), name='storage_use_once_for_all'),
        ),
        migrations.AddIndex(
            model_name='study',
            index=models.Index(fields=['project', '-id'], name='dashboard_s_project_ded5be_idx'),
        ),
        migrations.AddConstraint(
            model_name='study',
            constraint=models.CheckConstraint(condition=models.Q(('budget__in', ['equal-rank', 'equal-parameters'])), name='study_budget_known'),
        ),
        migrations.AddConstraint(
            model_name='study',
            constraint=models.CheckConstraint(condition=models.Q(('margin__gte', 0)), name='study_margin_not_negative'),
        ),
        migrations.AddConstraint(
            model_name='study',
            constraint=models.CheckConstraint(condition=models.Q(('max_hours', None), ('max_hours__gt', 0), _connector='OR'), name='study_max_hours_positive'),
        ),
        migrations.AddConstraint(
            model_name='tag',
            constraint=models.UniqueConstraint(fields=('project', 'name'), name='tag_once_per_project'),
        ),
        migrations.AddConstraint(
            model_name='targetmoduleconfig',
            constraint=models.UniqueConstraint(condition=models.Q(('project', None)), fields=('slug',), name='target_module_config_preset_once'),
        ),
        migrations.AddConstraint(
            model_name='targetmoduleconfig',
            constraint=models.UniqueConstraint(fields=('project', 'name', 'version'), name='target_module_config_version_once'),
        ),
        migrations.AddConstraint(
            model_name='studyarm',
            constraint=models.UniqueConstraint(fields=('study', 'name'), name='study_arm_name_once'),
        ),
        migrations.AddConstraint(
            model_name='studyarm',
            constraint=models.UniqueConstraint(condition=models.Q(('is_reference', True)), fields=('study',), name='study_one_reference_arm'),
        ),
        migrations.AddIndex(
            model_name='trainingrun',
            index=models.Index(fields=['project', '-id'], name='dashboard_t_project_c362f8_idx'),
        ),
        migrations.AddIndex(
            model_name='trainingrun',
            index=models.Index(fields=['project', 'spec_digest'], name='dashboard_t_project_00ce00_idx'),
        ),
        migrations.AddIndex(
            model_name='trainingrun',
            index=models.Index(fields=['project', 'training_seconds'], name='dashboard_t_project_8b514d_idx'),
        ),
        migrations.AddIndex(
            model_name='trainingrun',
            index=models.Index(fields=['project', 'name'], name='dashboard_t_project_534f43_idx'),
        ),
        migrations.AddIndex(
            model_name='trainingrun',
            index=models.Index(condition=models.Q(('outcome', '')), fields=['project'], name='training_run_open'),
        ),
        migrations.AddConstraint(
            model_name='trainingrun',
            constraint=models.CheckConstraint(condition=models.Q(('outcome__in', ['', 'succeeded', 'failed', 'cancelled', 'stopped_early'])), name='training_run_outcome_known'),
        ),
        migrations.AddIndex(
            model_name='runscore',
            index=models.Index(fields=['metric', 'value', 'run'], name='dashboard_r_metric_1ab22b_idx'),
        ),
        migrations.AddConstraint(
            model_name='runscore',
            constraint=models.UniqueConstraint(fields=('run', 'metric'), name='run_score_once_per_metric'),
        ),
        migrations.AddIndex(
            model_name='metricseries',
            index=models.Index(fields=['name', 'last', 'run'], name='dashboard_m_name_a7df92_idx'),
        ),
        migrations.AddConstraint(
            model_name='metricseries',
            constraint=models.UniqueConstraint(fields=('run', 'name'), name='metric_series_once_per_run'),
        ),
        migrations.AddConstraint(
            model_name='evaluation',
            constraint=models.UniqueConstraint(condition=models.Q(('number_format', ''), _negated=True), fields=('dataset_version', 'base_model', 'key', 'number_format'), name='base_evaluation_kept_once'),
        ),
        migrations.AddConstraint(
            model_name='adapter',
            constraint=models.UniqueConstraint(fields=('project', 'name', 'version'), name='adapter_version_once'),
        ),
        migrations.AddConstraint(
            model_name='adapter',
            constraint=models.CheckConstraint(condition=models.Q(('stage__in', ['draft', 'approved', 'retired'])), name='adapter_stage_known'),
        ),
        migrations.AddConstraint(
            model_name='tryoutlink',
            constraint=models.CheckConstraint(condition=models.Q(('prompts__lte', models.F('most_prompts'))), name='try_out_link_within_limit'),
        ),
        migrations.AddIndex(
            model_name='blindcomparison',
            index=models.Index(fields=['project', 'base_model', 'vote'], name='blind_comparison_votes'),
        ),
        migrations.AddConstraint(
            model_name='blindcomparison',
            constraint=models.CheckConstraint(condition=models.Q(('vote__in', ['', 'a', 'equal', 'b'])), name='blind_comparison_vote_known'),
        ),
        migrations.AddConstraint(
            model_name='vote',
            constraint=models.UniqueConstraint(fields=('item', 'voter'), name='vote_once_per_item'),
        ),
        migrations.AddConstraint(
            model_name='webhook',
            constraint=models.UniqueConstraint(fields=('project', 'url'), name='webhook_once_per_project'),
        ),
        migrations.AddIndex(
            model_name='webhookdelivery',
            index=models.Index(fields=['next_at'], name='webhook_delivery_due'),
        ),
        migrations.RunPython(create_cache_table, migrations.RunPython.noop),
    ]
