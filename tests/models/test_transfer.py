"""From a pre-trained encoder to a classifier."""
import json

import pytest
import timm
import torch
from helpers import ROOT, build, model_cfg, run_tool, write_images
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay

from cmae_mm.checkpoints import (
    CheckpointError,
    export_classifier,
    export_cmae,
    export_encoder,
    load_encoder_into,
    read_checkpoint,
)
from cmae_mm.models import TransferViT

ARCH = dict(
    embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96)


def transfer_vit(**kwargs) -> TransferViT:
    cfg = dict(
        type='TransferViT', arch=dict(ARCH), img_size=32, patch_size=4)
    return MODELS.build({**cfg, **kwargs})


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A model and its encoder in every kind of file."""
    torch.manual_seed(3)
    model = build(model_cfg())
    for p in model.target.parameters():
        p.data += 0.01 * torch.randn_like(p)
    folder = tmp_path_factory.mktemp('pretrained')
    torch.save(
        dict(state_dict=model.state_dict(), meta={}), folder / 'full.pth')
    export_encoder(model, str(folder / 'exported.safetensors'))
    export_encoder(model, str(folder / 'timm.pth'), to='timm')
    export_cmae(model, str(folder / 'released.pth'))
    torch.save(model.backbone.state_dict(), folder / 'bare.pth')
    return model, folder


@pytest.mark.parametrize('name,kind', [
    ('full.pth', 'a pre-training checkpoint'),
    ('exported.safetensors', 'an exported backbone'),
    ('timm.pth', 'an MAE or timm encoder'),
    ('released.pth', 'a released CMAE checkpoint'),
    ('bare.pth', 'a bare encoder'),
])
def test_every_kind_of_checkpoint_gives_the_encoder(pretrained, name, kind,
                                                    monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.encoder.print_log',
                        lambda text, **kwargs: said.append(text))
    model, folder = pretrained
    vit = transfer_vit(
        out_type='raw',
        init_cfg=dict(type='Pretrained', checkpoint=str(folder / name)))
    vit.init_weights()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit(images)[0], model.backbone(images)[0])
    count = len(model.backbone.state_dict())
    assert kind in said[0] and f'{count} keys matched' in said[0]
    assert 'every key matched' in said[0]


def test_the_target_encoder_too(pretrained):
    model, folder = pretrained
    init_cfg = dict(
        type='Pretrained', checkpoint=str(folder / 'full.pth'),
        encoder='target')
    # the released recipe's target has no final norm
    with pytest.raises(CheckpointError, match='missing'):
        transfer_vit(out_type='raw', init_cfg=init_cfg).init_weights()
    vit = transfer_vit(out_type='raw', final_norm=False, init_cfg=init_cfg)
    vit.init_weights()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit(images)[0], model.target.encode(images))
    with pytest.raises(CheckpointError, match='which has no target encoder'):
        load_encoder_into(vit, str(folder / 'exported.safetensors'), 'target')


def test_positions_are_resampled_and_what_is_new_is_said(pretrained,
                                                         monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.encoder.print_log',
                        lambda text, **kwargs: said.append(text))
    vit = transfer_vit(
        img_size=48, out_type='avg_featmap', final_norm=False,
        init_cfg=dict(
            type='Pretrained', checkpoint=str(pretrained[1] / 'full.pth')))
    vit.init_weights()
    assert 'pos_embed: 8x8 to 12x12' in said[0]
    assert 'left out: its final norm' in said[0]
    assert 'new, not from the checkpoint: ln2.weight, ln2.bias' in said[0]


@pytest.mark.parametrize('change,message', [
    (dict(arch=dict(ARCH, embed_dims=64)), 'misshapen(.|\n)*width, depth'),
    (dict(patch_size=8), 'misshapen(.|\n)*patch_embed(.|\n)*patch size'),
    (dict(arch=dict(ARCH, num_layers=3)), 'missing(.|\n)*layers.2'),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='')),
     'no checkpoint was given: set model.backbone.init_cfg.checkpoint'),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth')),
     'there is no checkpoint nowhere.pth'),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='x', encode='y')),
     "init_cfg takes .* but got .*'encode'"),
])
def test_a_checkpoint_that_does_not_fit(pretrained, change, message):
    cfg = dict(
        init_cfg=dict(
            type='Pretrained', checkpoint=str(pretrained[1] / 'full.pth')))
    with pytest.raises(CheckpointError, match=message):
        transfer_vit(**{**cfg, **change}).init_weights()


@pytest.mark.parametrize('init_cfg', [
    None, dict(type='Pretrained', checkpoint='random')])
def test_a_random_start(init_cfg, monkeypatch):
    said = []
    monkeypatch.setattr('cmae_mm.checkpoints.encoder.print_log',
                        lambda text, **kwargs: said.append(text))
    vit = transfer_vit(init_cfg=init_cfg)
    assert vit.pos_embed.abs().max() == 0
    vit.init_weights()
    assert vit.pos_embed.detach().std() == pytest.approx(0.02, rel=0.1)
    assert bool(said) == (init_cfg is not None)
    if said:
        assert 'starts from random weights' in said[0]


def test_a_file_without_encoder(tmp_path):
    save_file({'conv1.weight': torch.zeros(1)}, tmp_path / 'x.safetensors')
    with pytest.raises(CheckpointError, match='no encoder .* conv1.weight'):
        load_encoder_into(transfer_vit(), str(tmp_path / 'x.safetensors'))


def test_parameter_groups_are_timms():
    """Learning rate and decay of each parameter of a ViT-B, as in timm."""
    cfg = Config.fromfile(ROOT / 'configs/finetune/vit-b_pt300e_100e_in1k.py')
    ours = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(ours, cfg.optim_wrapper)
    settings = {}
    lr = cfg.optim_wrapper.optimizer.lr
    for group in wrapper.optimizer.param_groups:
        for p in group['params']:
            settings[id(p)] = (group['lr'] / lr, group['weight_decay'])

    theirs = timm.create_model(
        'vit_base_patch16_224', num_classes=1000, global_pool='avg')
    groups = param_groups_layer_decay(
        theirs,
        weight_decay=0.05,
        no_weight_decay_list=theirs.no_weight_decay(),
        layer_decay=0.65)
    expected = {}
    for group in groups:
        for p in group['params']:
            expected[id(p)] = (group['lr_scale'], group['weight_decay'])
    # The same parameter is found by what the export renames it to.
    renamed = dict(zip(_timm_names(ours), ours.parameters()))
    their_parameters = dict(theirs.named_parameters())
    assert renamed.keys() == their_parameters.keys()
    for name, p in renamed.items():
        assert settings[id(p)] == pytest.approx(
            expected[id(their_parameters[name])]), name


def _timm_names(model):
    """Name a classifier's parameters, in order, as its export does."""
    from cmae_mm.checkpoints.names import to_timm
    for name, _ in model.named_parameters():
        if name.startswith('head.fc.'):
            yield name.replace('head.fc.', 'head.')
        elif name.startswith('backbone.ln2.'):
            yield name.replace('backbone.ln2.', 'fc_norm.')
        else:
            yield next(iter(to_timm({name.removeprefix('backbone.'): 0})))


def classifier_cfg(image_root, work_dir, checkpoint, **overrides) -> Config:
    """A fine-tuning config for small images."""
    cfg = Config.fromfile(ROOT / 'configs/cifar10/finetune_vit-mini_10e.py')
    cfg.merge_from_dict({
        'model.backbone.arch': ARCH,
        'model.backbone.init_cfg.checkpoint': str(checkpoint),
        'model.head.in_channels': 48,
        'model.head.num_classes': 2,
        'data_preprocessor.num_classes': 2,
        'train_cfg.max_epochs': 1,
    })
    for name, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        cfg.merge_from_dict({
            f'{name}_dataloader.dataset.data_root': str(image_root),
            f'{name}_dataloader.dataset.data_prefix': split,
            f'{name}_dataloader.batch_size': 8,
            f'{name}_dataloader.num_workers': 0,
            f'{name}_dataloader.persistent_workers': False,
        })
    for name in ('val', 'test'):
        cfg[f'{name}_dataloader'].dataset.pipeline.insert(
            1, dict(type='Resize', scale=32))
    cfg.param_scheduler = []
    cfg.work_dir, cfg.launcher = str(work_dir), 'none'
    cfg.merge_from_dict(overrides)
    return cfg


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


def test_classifiers_that_timm_cannot_be_given(pretrained, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs/cifar10/linear_vit-mini_10e.py')
    with pytest.raises(CheckpointError, match='no neck'):
        export_classifier(MODELS.build(cfg.model), str(tmp_path / 'x.pth'))


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
    (_no_labels, "class folders .* but it has 4 images beside"),
    (_empty_val, "no labelled images in '.*val'"),
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


def test_annotation_files(pretrained, image_root, tmp_path):
    """Labels beyond the head, and images without any."""
    lines = [f'class{c}/{i:03d}.jpg' for c in range(2) for i in range(8)]
    for text, message in ((' 2', 'has 3 classes'), ('', 'needs lines '
                                                    '"<path> <label>"')):
        (tmp_path / 'ann.txt').write_text(
            '\n'.join(line + text for line in lines))
        cfg = classifier_cfg(
            image_root, tmp_path / 'work', pretrained[1] / 'full.pth',
            **{'train_dataloader.dataset.ann_file':
               str(tmp_path / 'ann.txt')})
        with pytest.raises(ValueError, match=message):
            Runner.from_cfg(cfg).train()


def test_fine_tuning_configs_fit_their_encoders():
    """Each fine-tuning model has the parameters of a pre-training config."""
    pairs = {
        'finetune/vit-s_pt300e_100e_in1k': 'cmae_vit-s_300e',
        'finetune/vit-b_pt300e_100e_in1k': 'cmae_vit-b_300e',
        'finetune/vit-b_pt1600e_100e_in1k': 'cmae_vit-b_1600e',
        'finetune/vit-l_pt800e_50e_in1k': 'cmae_vit-l_800e',
        'finetune/vit-h_pt800e_50e_in1k': 'cmae_vit-h_800e',
        'linear/vit-b_90e_in1k': 'cmae_vit-b_300e',
        'lowshot/vit-b_pt300e_100e_in1k-1pct': 'cmae_vit-b_300e',
        'lowshot/vit-b_pt300e_100e_in1k-10pct': 'cmae_vit-b_300e',
        'cifar10/finetune_vit-mini_10e': 'cifar10/cmae_vit-mini_20e',
        'cifar10/linear_vit-mini_10e': 'cifar10/cmae_vit-mini_20e',
    }
    found = {
        str(p.relative_to(ROOT / 'configs').with_suffix(''))
        for folder in ('finetune', 'linear', 'lowshot')
        for p in (ROOT / 'configs' / folder).glob('*.py')
    }
    assert found <= set(pairs)

    def shapes(cfg):
        with torch.device('meta'):
            vit = MODELS.build(cfg)
        return {
            k: v.shape
            for k, v in vit.state_dict().items()
            if not k.startswith(('ln1.', 'ln2.'))
        }

    for transfer, pretraining in pairs.items():
        models = [
            Config.fromfile(ROOT / f'configs/{name}.py').model
            for name in (transfer, pretraining)
        ]
        assert shapes(models[0].backbone) == shapes(models[1].backbone)
        dims = shapes(models[0].backbone)['cls_token'][-1]
        assert models[0].head.in_channels == dims


def test_the_backbone_compiles_to_one_graph():
    """And the compiled classifier's loss has the same gradients."""
    vit = transfer_vit(
        out_type='avg_featmap', final_norm=False, drop_path_rate=0.1)
    images = torch.randn(2, 3, 32, 32)
    explained = torch._dynamo.explain(vit)(images)
    assert explained.graph_break_count == 0, explained.break_reasons

    def gradient(forward):
        vit.zero_grad()
        torch.manual_seed(0)
        forward(images)[0].square().sum().backward()
        return vit.patch_embed.projection.weight.grad.clone()

    torch._dynamo.reset()
    # eager kernels: what is tested is the tracing, forward and backward
    torch.testing.assert_close(
        gradient(torch.compile(vit, backend='aot_eager')), gradient(vit))


@pytest.mark.parametrize(
    'path', [
        p for folder in ('finetune', 'linear', 'lowshot', 'cifar10')
        for p in sorted((ROOT / 'configs' / folder).glob('*.py'))
        if not p.name.startswith('cmae_')
    ], ids=lambda p: p.stem)
def test_configs_make_batches(path, tmp_path, monkeypatch):
    """Training and validation images, of the size that the model takes."""
    monkeypatch.setenv('DATA_ROOT', str(tmp_path))
    for split in ('train', 'val', 'test'):
        write_images(tmp_path / split / 'class0', 2, size=300)
    (tmp_path / 'splits').mkdir()
    for percent in (1, 10):
        (tmp_path / f'splits/{percent}pct_seed0.txt').write_text(
            'class0/001.jpg 0\n')
    cfg = Config.fromfile(path)
    size = cfg.model.backbone.img_size
    preprocessor = MODELS.build(cfg.data_preprocessor)
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader']
        if 'cifar10' in path.parts and split == 'val':
            # of the images' size there
            loader.dataset.pipeline.insert(1, dict(type='Resize', scale=size))
        dataset = DATASETS.build(loader.dataset)
        batch = preprocessor(
            default_collate([dataset[0]] * 2), training=split == 'train')
        assert batch['inputs'].shape == (2, 3, size, size)
        assert batch['inputs'].dtype == torch.float32
    if 'lowshot' in path.parts:
        assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 1


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


def test_the_imagenet_probe_is_maes(tmp_path):
    """One norm, then BatchNorm and a linear layer; LARS of matrices alone."""
    cfg = Config.fromfile(ROOT / 'configs/linear/vit-b_90e_in1k.py')
    cfg.model.backbone.arch = ARCH
    cfg.merge_from_dict({
        'model.backbone.img_size': 32, 'model.backbone.patch_size': 8,
        'model.backbone.frozen_stages': ARCH['num_layers'],
        'model.backbone.drop_path_rate': 0.5,
        'model.backbone.init_cfg.checkpoint': 'random',
        'model.neck.input_features': 48, 'model.head.in_channels': 48,
        'model.head.num_classes': 5})
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    images = torch.randn(4, 3, 32, 32)
    # Frozen in training, too: no path is dropped, twice the same features,
    # which are the class token after the encoder's own norm.
    feature = model.backbone(images)[0]
    assert torch.equal(feature, model.backbone(images)[0])
    plain = transfer_vit(img_size=32, patch_size=8, out_type='raw')
    plain.load_state_dict(model.backbone.state_dict())
    torch.testing.assert_close(feature, plain.eval()(images)[0][:, 0])
    assert not hasattr(model.backbone, 'ln2')
    assert not model.neck.bn.affine and model.neck.bn.eps == 1e-6

    wrapper = build_optim_wrapper(
        model, dict(cfg.optim_wrapper, dtype='float32'))
    weight, bias = model.head.fc.weight, model.head.fc.bias
    torch.nn.init.constant_(bias, 0.1)
    before = weight.detach().clone(), bias.detach().clone()
    weight.grad, bias.grad = torch.randn_like(weight), torch.randn_like(bias)
    wrapper.optimizer.step()
    rate = cfg.optim_wrapper.optimizer.lr
    trust = 1e-3 * before[0].norm() / weight.grad.norm()
    torch.testing.assert_close(
        weight.detach(), before[0] - rate * trust * weight.grad)
    torch.testing.assert_close(
        bias.detach(), before[1] - rate * bias.grad)
