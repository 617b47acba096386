"""No code in a file is run, and damage is detected."""
import os
import pickle
import time

import mmengine
import numpy as np
import payloads
import pytest
import torch
from helpers import needs_torch, runner_cfg
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner
from mmengine.utils.dl_utils import load_url
from payloads import CONTAINERS, KINDS, body, has_run, read_bytes, write_zip
from torch.utils.data import DataLoader, TensorDataset

from cmae_mm.checkpoints import (CheckpointError, load_only_safely,
                                 read_checkpoint)
from cmae_mm.checkpoints.read import load_file
from cmae_mm.engine import ResumableRunner

# Commands that other tests run in this process replace it.
TORCH_LOAD = torch.load


class TestPayloads:

    @pytest.mark.parametrize('kind', KINDS)
    def test_they_run_when_they_are_unpickled(self, kind, marker):
        """Otherwise what follows would prove nothing."""
        pickle.loads(body(kind(marker)))
        deadline = time.time() + 20
        while not has_run(marker) and time.time() < deadline:
            time.sleep(.02)  # one of them starts a process and does not wait
        assert has_run(marker)

    @needs_torch(2, 5, 'a list of safe globals')
    def test_getattr_is_enough_with_weights_only(self, marker, tmp_path):
        write_zip(tmp_path / 'a.pth', body(payloads.chain(marker)))
        torch.serialization.add_safe_globals([getattr, HistoryBuffer])
        TORCH_LOAD(tmp_path / 'a.pth', weights_only=True)
        assert has_run(marker)

    @pytest.mark.parametrize('kind', KINDS)
    def test_invalid_files_raise_one_sentence(self, kind, marker, tmp_path):
        """In every container, wherever in a checkpoint they stand."""
        places = ('meta', 'optimizer', 'message_hub', 'state_dict')
        for write, place in zip(CONTAINERS * 2, places * 2):
            path = tmp_path / f'{write.__name__}_{place}.pth'
            write(path, body(kind(marker), place))
            for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
                with pytest.raises(CheckpointError) as error:
                    read(str(path))
                text = str(error.value)
                assert 'could run code' in text and path.name in text
                assert text.count('\n') == 0
        assert not has_run(marker)

    def test_names_that_are_no_values_are_refused(self):
        for content in (b'cos\nsystem\n.', b'](cos\nsystem\ne.',
                        b'cbuiltins\neval\n)R.', b'P1\n.', b'\x82\x01.',
                        b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
                        b')\x81}X\x05\x00\x00\x00__x__K\x01sb.',
                        b'ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00other'
                        b'K\x01sb.'):
            with pytest.raises(CheckpointError, match='could run code'):
                read_bytes(content)


def test_a_config_in_a_checkpoint_is_not_run(image_root, tmp_path, marker):
    """mmengine runs meta['config'] as Python when it resumes."""
    cfg = runner_cfg(image_root, tmp_path / 'work')
    runner = ResumableRunner.from_cfg(cfg)
    runner.train()
    path = tmp_path / 'work/iter_2.pth'
    checkpoint = load_file(path)
    checkpoint['meta']['config'] = (
        f'import pathlib\npathlib.Path({str(marker)!r}).touch()\n')
    torch.save(checkpoint, path)
    for kind in (ResumableRunner, Runner):
        cfg.train_cfg.max_iters = 3
        kind.from_cfg(cfg).resume(str(path))
        assert not has_run(marker)


def test_every_loader_of_a_command_is_safe(safe_process, marker, tmp_path):
    """Whatever it asks of torch.load, also one that downloads first."""
    load_only_safely()
    path = tmp_path / 'stranger.pth'
    write_zip(path, body(payloads.system(marker)))
    for load in (lambda: torch.load(path, weights_only=False),
                 lambda: torch.load(path, 'cpu', pickle, mmap=True),
                 lambda: load_url(path.as_uri(), str(tmp_path / 'hub'))):
        with pytest.raises(CheckpointError, match='could run code'):
            load()
    assert not has_run(marker)
    torch.save(dict(a=torch.ones(1)), path)
    for read in (torch.load(path, map_location='cpu'),
                 load_url(path.as_uri(), str(tmp_path / 'hub2'))):
        assert torch.equal(read['a'], torch.ones(1))


def test_data_files_are_read_as_plain_values(safe_process, tmp_path, marker):
    load_only_safely()
    annotations = dict(data_list=[dict(img_path='a.jpg', gt_label=np.int64(3),
                                       box=np.eye(2))])
    mmengine.dump(annotations, tmp_path / 'a.pkl')
    read = mmengine.load(tmp_path / 'a.pkl')
    assert str(read) == str(annotations)
    (tmp_path / 'b.pkl').write_bytes(body(payloads.system(marker)))
    with pytest.raises(CheckpointError, match='could run code'):
        mmengine.load(tmp_path / 'b.pkl')
    (tmp_path / 'a.yaml').write_text('a: [1, two]\n')
    assert mmengine.load(tmp_path / 'a.yaml') == dict(a=[1, 'two'])
    (tmp_path / 'b.yaml').write_text(
        f'a: !!python/object/apply:os.system ["touch {marker}"]\n')
    with pytest.raises(CheckpointError, match='not plain YAML'):
        mmengine.load(tmp_path / 'b.yaml')
    assert not has_run(marker)


def test_processes_still_talk_to_each_other(safe_process, image_root):
    """Workers, collectives of objects, data sets in memory: all pickles."""
    load_only_safely()
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'
    for context in ('fork', 'spawn'):
        loader = DataLoader(
            TensorDataset(torch.arange(4)), 2, num_workers=1,
            multiprocessing_context=context)
        assert torch.cat([batch for batch, in loader]).tolist() == [0, 1, 2, 3]
    tensor = torch.randn(3, dtype=torch.float64)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        sent = [dict(a=tensor, b=HistoryBuffer([1.], [1]))]
        received = [None]
        torch.distributed.all_gather_object(received, sent)
        assert torch.equal(received[0][0]['a'], tensor)
    finally:
        # torch 2.1 holds the GIL while it ends gloo's threads, and one that
        # still has a tensor waits for the GIL.
        time.sleep(0.5)
        torch.distributed.destroy_process_group()
    cfg = runner_cfg(image_root, 'unused').train_dataloader.dataset
    from mmpretrain.registry import DATASETS
    dataset = DATASETS.build(cfg)
    dataset.full_init()
    assert dataset.get_data_info(0)['img_path'].endswith('.jpg')
