"""Files around the code: citation, workflow, templates, types."""
import configparser
import re

import pytest
import yaml
from helpers import ROOT

from cmae_mm.version import __version__


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_the_citation_names_this_version_and_the_paper():
    citation = read('CITATION.cff')
    assert citation['cff-version'] == '1.2.0'
    assert citation['version'] == __version__
    paper = citation['preferred-citation']
    assert '2207.13532' in paper['url']
    assert paper['authors'][0]['family-names'] == 'Huang'


def test_the_workflow_runs_every_step_of_the_script():
    """A step that .ci/run gains must not be left out there."""
    steps = re.findall(r'^step (\w+) ', (ROOT / '.ci/run').read_text(), re.M)
    jobs = read('.github/workflows/ci.yml')['jobs']
    assert jobs['run']['strategy']['matrix']['step'] == steps
    assert any('.ci/run' in s.get('run', '') for s in jobs['run']['steps'])


def test_the_workflow_tries_every_python_that_is_promised():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    promised = re.findall(r'Python :: (3\.\d+)',
                          config['metadata']['classifiers'])
    jobs = read('.github/workflows/ci.yml')['jobs']
    tried = jobs['other-pythons']['strategy']['matrix']['python']
    own = [
        s['with']['python-version'] for s in jobs['run']['steps']
        if 'python-version' in s.get('with', {})
    ]
    assert sorted(tried + own) == sorted(promised)


@pytest.mark.parametrize('name', ['bug', 'feature', 'question'])
def test_issue_forms_are_valid(name):
    form = read(f'.github/ISSUE_TEMPLATE/{name}.yml')
    assert form['name'] and form['description']
    ids = [part['id'] for part in form['body']]
    assert len(set(ids)) == len(ids) > 0
    for part in form['body']:
        assert part['type'] in ('textarea', 'checkboxes')
        assert part['attributes']['label']


def test_the_package_ships_its_types():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert 'py.typed' in config['options.package_data']['cmae_mm'].split()
    assert (ROOT / 'cmae_mm/py.typed').is_file()
