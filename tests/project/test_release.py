"""Release: notes, checks, container, batch job."""
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
from release_notes import notes_of  # noqa: E402

CHANGELOG = '''# Changelog

## 0.2.0 (2027-01-31)

- Two.

## 0.1.0 (unreleased)

- One.

## 0.0.1 (2026-01-01)
'''


def test_notes_are_the_versions_section():
    assert notes_of('v0.2.0', '0.2.0', CHANGELOG) == '- Two.'
    for tag, version, wrong in (
            ('v0.2.1', '0.2.0', 'tag it v0.2.0'),
            ('v0.1.0', '0.1.0', r'has \(unreleased\)'),
            ('v0.0.1', '0.0.1', 'is empty'),
            ('v0.2', '0.2', 'no section')):
        with pytest.raises(ValueError, match=wrong):
            notes_of(tag, version, CHANGELOG)


def test_this_version_has_a_section():
    done = subprocess.run(
        [sys.executable, 'tools/release_notes.py', 'v0.0'], cwd=ROOT,
        capture_output=True, text=True)
    assert done.returncode == 1
    version = re.search(r'the version is ([\d.]+\d)', done.stderr)[1]
    assert f'\n## {version} (' in (ROOT / 'CHANGELOG.md').read_text()


def run_check(*arguments, path=''):
    return subprocess.run(
        ['bash', 'tools/release_check.sh', *map(str, arguments)], cwd=ROOT,
        capture_output=True, text=True,
        env=dict(os.environ, PATH=f'{path}{os.pathsep}{os.environ["PATH"]}'))


def test_check_names_the_failed_step(tmp_path):
    """With a stand-in for Python."""
    fake = tmp_path / 'bin/python'
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$@"\n'
                    'case "$*" in *benchmark_step*) exit 3 ;; esac\n')
    fake.chmod(0o755)
    done = run_check('--device', 'cpu', '--out', tmp_path / 'out',
                     path=fake.parent)
    assert done.returncode == 1, done.stderr
    report = (tmp_path / 'out/report.md').read_text()
    rows = dict(re.findall(r'^\| (\w+) \| (.*?) \|', report, re.M))
    for name in ('step', 'step_compiled'):
        assert rows[name] == f'**failed** (status 3), [log]({name}.log)'
    assert rows['gpu_tests'].startswith('left out')
    assert rows['train_float16'].startswith('left out')
    assert rows['train_bfloat16'] == rows['doctor'] == 'passed'
    assert 'optim_wrapper.dtype=bfloat16' in (
        tmp_path / 'out/train_bfloat16.log').read_text()


def test_check_rejects_unknown_steps():
    for arguments, wrong in (
            (['--device', 'tpu'], 'must be cuda or cpu, but got tpu'),
            (['--fast'], 'unknown argument --fast')):
        done = run_check(*arguments)
        assert done.returncode == 2 and wrong in done.stderr


def instructions():
    text = (ROOT / 'docker/Dockerfile').read_text()
    text = re.sub(r'^#.*\n', '', text, flags=re.M).replace('\\\n', ' ')
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line]


def test_the_container_is_pinned_and_has_no_rights():
    lines = instructions()
    base, = [value for name, value in lines if name == 'FROM']
    assert re.fullmatch(r'[\w./-]+:\d[\w.-]+', base), base
    user, = [value for name, value in lines if name == 'USER']
    assert user not in ('root', '0')
    # What is installed after it is the user's.
    places = [name for name, _ in lines]
    assert 'apt-get' not in ''.join(
        value for name, value in lines[places.index('USER'):]
        if name == 'RUN')
    for command in (value for name, value in lines if name == 'RUN'):
        subprocess.run(['bash', '-n', '-c', command], check=True)
        if 'pip install' in command:
            assert '-c /opt/cmae_mm/constraints.txt' in command


@pytest.mark.skipif(shutil.which('hadolint') is None,
                    reason="hadolint is not installed (extra 'dev')")
def test_container_file_passes_the_linter():
    done = subprocess.run(['hadolint', 'docker/Dockerfile'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_copied_to_the_container_exist():
    ignored = [line for line in (ROOT / '.dockerignore').read_text(
    ).splitlines() if line and not line.startswith('#')]
    for name, value in instructions():
        if name != 'COPY':
            continue
        source = [w for w in shlex.split(value) if not w.startswith('--')][0]
        assert (ROOT / source).exists()
        assert not any(fnmatch.fnmatch(source, line) for line in ignored)
    # and what the package is built from
    for needed in ('setup.cfg', 'pyproject.toml', 'README.md', 'cmae_mm',
                   'configs', 'tools', 'model-index.yml'):
        assert (ROOT / needed).exists() and needed not in ignored


def test_the_batch_job_starts_the_ranks(tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    done = subprocess.run(
        ['bash', 'examples/cmae.sbatch', 'configs/cmae_vit-l_800e.py',
         '--auto-scale-lr'], cwd=ROOT, capture_output=True, text=True,
        env=dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}',
                 DATA_ROOT='/data', SLURM_NTASKS='32',
                 SLURM_NTASKS_PER_NODE='8', SLURM_JOB_PARTITION='large'))
    assert done.returncode == 0, done.stderr
    assert '--partition=large' in done.stdout and '--ntasks=32' in done.stdout
    assert 'cmae_vit-l_800e.py --launcher slurm --auto-scale-lr' in done.stdout


def test_workflows_name_existing_files():
    for path in (ROOT / '.github/workflows').glob('*.yml'):
        jobs = yaml.safe_load(path.read_text())['jobs']
        for name, job in jobs.items():
            needs = job.get('needs', [])
            assert {needs} <= set(jobs) if isinstance(needs, str) else (
                set(needs) <= set(jobs))
            for step in job['steps']:
                if 'uses' in step:
                    assert '@' in step['uses'], step
                for script in re.findall(r'(?:tools|\.ci)/[\w./]+',
                                         step.get('run', '')):
                    assert (ROOT / script).exists(), (path.name, name, script)
