"""How many modules of the package a command imports before its work."""
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, build, model_cfg, write_images

# The command line, the function whose first call is the work, and the number
# of modules until then. The targets are 15 and 30: lower the numbers, and do
# not raise them.
COMMANDS = {
    'knn': (['knn', 'DATA', 'CHECKPOINT', '--ks', '3', '--num-workers', '0'],
            'cmae_mm.apis.encoder:PretrainedEncoder.encode', 37),
    'pretrain': (
        ['pretrain', 'DATA', '--model', 'mini', '--epochs', '1',
         '--batch-size', '4', '--num-workers', '0', '--out', 'out'],
        'cmae_mm.models:CMAE.loss', 61),
}
CODE = '''
import importlib, json, os, sys
line, place = json.loads(sys.argv[1])
sys.argv = ['cmae', *line]
from cmae_mm.apis import arguments
load = arguments.load_libraries
import cmae_mm.cli.main as command

def count(*args, **kwargs):
    found = [n for n in sys.modules if n.split('.')[0] == 'cmae_mm']
    print('COUNTED', len(found), *sorted(found), flush=True)
    os._exit(0)

def load_and_patch(*which):
    load(*which)
    module, _, attribute = place.partition(':')
    kind, _, method = attribute.partition('.')
    if module not in sys.modules and which == ('framework', ):
        importlib.import_module(module)
    setattr(getattr(sys.modules[module], kind), method, count)

command.load_libraries = load_and_patch
from cmae_mm.cli.main import main
main()
'''


@pytest.mark.parametrize('name', COMMANDS)
def test_few_modules_are_imported(name, tmp_path):
    for split in ('train', 'val'):
        for c in range(2):
            write_images(tmp_path / f'data/{split}/class{c}', 4, seed=c)
    model = build(model_cfg())
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        encoder_facts=dict(num_heads=3))), tmp_path / 'model.pth')
    line, place, most = COMMANDS[name]
    words = dict(DATA='data', CHECKPOINT='model.pth')
    done = subprocess.run(
        [sys.executable, '-c', CODE,
         json.dumps([[words.get(w, w) for w in line], place])],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)})
    counted = next(s for s in done.stdout.splitlines()
                   if s.startswith('COUNTED')).split()
    assert int(counted[1]) <= most, '\n'.join(counted)
