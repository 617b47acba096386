"""Fine-tuning and probing, from an encoder to a classifier in timm."""
import json

import pytest
import timm
import torch
from helpers import ROOT, run_tool, write_images
from mmengine.config import Config
from mmengine.runner import Runner
from transfer_models import ARCH, classifier_cfg

from cmae_mm.checkpoints import read_checkpoint


def test_a_fine_tuned_network_gives_the_same_logits_in_timm(
        pretrained, image_root, tmp_path):
    """Mixup and layer decay included; then through the export command."""
    cfg = classifier_cfg(image_root, tmp_path, pretrained[1] / 'full.pth')
    cfg.model.train_cfg = dict(augments=[
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0)
    ])
    runner = Runner.from_cfg(cfg)
    runner.train()
    model = runner.model.eval()
    start = read_checkpoint(str(pretrained[1] / 'full.pth')).state
    moved = model.backbone.state_dict()['layers.0.attn.qkv.weight']
    assert not torch.equal(moved, start['backbone.layers.0.attn.qkv.weight'])

    (tmp_path / 'config.py').write_text(cfg.pretty_text)
    run_tool('cmae', 'export', tmp_path / 'config.py',
             tmp_path / 'epoch_1.pth', tmp_path / 'timm.safetensors', '--to',
             'timm')
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=4,
        mlp_ratio=2, num_classes=2, global_pool='avg', norm_layer=None)
    theirs.load_state_dict(
        read_checkpoint(str(tmp_path / 'timm.safetensors')).state)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.eval()(images), model(images, mode='tensor'))


def test_the_linear_probe_trains_the_head_alone(pretrained, image_root,
                                                tmp_path):
    linear = Config.fromfile(ROOT / 'configs/cifar10/linear_vit-mini_10e.py')
    cfg = classifier_cfg(image_root, tmp_path, pretrained[1] / 'full.pth')
    cfg.optim_wrapper = linear.optim_wrapper
    cfg.data_preprocessor.to_onehot = False
    cfg.model = linear.model
    cfg.merge_from_dict({
        'model.backbone.arch': ARCH,
        'model.backbone.frozen_stages': 2,
        'model.backbone.init_cfg.checkpoint':
        str(pretrained[1] / 'full.pth'),
        'model.neck.input_features': 48,
        'model.head.in_channels': 48,
        'model.head.num_classes': 2,
    })
    runner = Runner.from_cfg(cfg)
    runner.train()
    expected = pretrained[0].backbone.state_dict()
    for name, value in runner.model.backbone.state_dict().items():
        if not name.startswith('ln2.'):
            assert torch.equal(value, expected[name]), name
    assert runner.model.head.fc.bias.abs().max() > 0
    trained = [n for n, p in runner.model.named_parameters()
               if p.requires_grad]
    assert trained == ['head.fc.weight', 'head.fc.bias']


def _other_val(root):
    for name in ('class0', 'class2'):
        write_images(root / 'val' / name, 2)


def _more_classes(root):
    for split in ('train', 'val'):
        write_images(root / split / 'class2', 2)


def _no_labels(root):
    write_images(root / 'train', 4)
    for folder in ('class0', 'class1'):
        for f in (root / 'train' / folder).iterdir():
            f.unlink()
        (root / 'train' / folder).rmdir()


def _empty_val(root):
    for folder in (root / 'val').iterdir():
        for f in folder.iterdir():
            f.unlink()


@pytest.mark.parametrize('change,message', [
    (_other_val, "'class2' in the validation data and not in the training"),
    (_more_classes, 'has 3 classes, but the head has num_classes=2'),
    (_no_labels, "class folders .*skipped: 4 unlabelled images"),
    (_empty_val, 'no labelled images below .*val of 2 classes; 2 of them '
     'without'),
])
def test_bad_data_is_found_before_the_first_step(change, message, pretrained,
                                                 tmp_path):
    root = tmp_path / 'data'
    for split in ('train', 'val'):
        for c in range(2):
            write_images(root / split / f'class{c}', 8)
    change(root)
    cfg = classifier_cfg(root, tmp_path / 'work', pretrained[1] / 'full.pth')
    with pytest.raises(Exception, match=message):
        Runner.from_cfg(cfg).train()
    assert not list((tmp_path / 'work').rglob('*.pth'))


def test_more_ranks_than_classes_are_found_before_the_first_step(
        pretrained, image_root, tmp_path):
    cfg = classifier_cfg(
        image_root, tmp_path / 'work', pretrained[1] / 'full.pth',
        val_evaluator=dict(type='Accuracy', topk=(1, 5)))
    with pytest.raises(ValueError, match='top-5 .* set val_evaluator.topk=1'):
        Runner.from_cfg(cfg).train()


def test_annotation_files(pretrained, image_root, tmp_path):
    """Labels beyond the head, and images without any."""
    lines = [f'class{c}/{i:03d}.jpg' for c in range(2) for i in range(8)]
    for text, message in ((' 2', 'has 3 classes'), ('', 'use lines '
                                                    '"<path> <label>"')):
        (tmp_path / 'ann.txt').write_text(
            '\n'.join(line + text for line in lines))
        cfg = classifier_cfg(
            image_root, tmp_path / 'work', pretrained[1] / 'full.pth',
            **{'train_dataloader.dataset.ann_file':
               str(tmp_path / 'ann.txt')})
        with pytest.raises(ValueError, match=message):
            Runner.from_cfg(cfg).train()


def test_train_and_test_commands(pretrained, image_root, tmp_path):
    cfg = classifier_cfg(image_root, tmp_path / 'work', '')
    cfg.pop('work_dir')
    (tmp_path / 'config.py').write_text(cfg.pretty_text)
    run_tool('python', 'tools/train.py', tmp_path / 'config.py', '--work-dir',
             tmp_path / 'work', '--cfg-options',
             f'model.backbone.init_cfg.checkpoint={pretrained[1]}/full.pth')
    run_tool('python', 'tools/test.py', tmp_path / 'config.py',
             tmp_path / 'work/epoch_1.pth', '--work-dir', tmp_path / 'work',
             '--out', tmp_path / 'out.json')
    assert 0 <= json.loads(
        (tmp_path / 'out.json').read_text())['accuracy/top1'] <= 100
