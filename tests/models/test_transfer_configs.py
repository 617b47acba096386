"""The configs of transfer: their models, data, rates and decay."""
import pytest
import timm
import torch
from helpers import ROOT, write_images
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import DATASETS, MODELS
from timm.optim import param_groups_layer_decay
from transfer_models import ARCH, transfer_vit


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
    from cmae_mm.checkpoints.layouts import to_timm
    for name, _ in model.named_parameters():
        if name.startswith('head.fc.'):
            yield name.replace('head.fc.', 'head.')
        elif name.startswith('backbone.ln2.'):
            yield name.replace('backbone.ln2.', 'fc_norm.')
        else:
            name = name.removeprefix('backbone.')
            yield next(iter(to_timm({name: torch.zeros(1)})))


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
        'finetune/convvit-b_100e_in1k': 'cmae_convvit-b_300e',
        'linear/convvit-b_90e_in1k': 'cmae_convvit-b_300e',
        'cifar10/finetune_convvit-mini_10e': 'cifar10/cmae_convvit-mini_20e',
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
            if not k.startswith(('ln1.', 'ln2.', 'fusions.'))
        }

    for transfer, pretraining in pairs.items():
        models = [
            Config.fromfile(ROOT / f'configs/{name}.py').model
            for name in (transfer, pretraining)
        ]
        assert shapes(models[0].backbone) == shapes(models[1].backbone)
        dims = shapes(models[0].backbone)['pos_embed'][-1]
        assert models[0].head.in_channels == dims


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
