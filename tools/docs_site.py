"""Generate pages of the site that are not in docs/, and convert links.

A hook of mkdocs.yml (extra='docs'). Generated pages: the notebook, the
reference from the docstrings of ``__all__`` in each package, and each file of
the clone that a page links to. All pages are plain Markdown with relative
links, which also work on GitHub.
"""
import ast
import posixpath
import re
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = 'examples/first_steps.py'
# Pages of the site by their source files.
PAGES = {
    NOTEBOOK: 'first-steps.md',
    'CONTRIBUTING.md': 'CONTRIBUTING.md',
    'CHANGELOG.md': 'CHANGELOG.md',
}
# Packages in the reference, and their titles.
ROOMS = {
    'models': 'Models',
    'datasets': 'Data',
    'engine': 'Engine',
    'evaluation': 'Evaluation',
    'checkpoints': 'Checkpoints',
    'visualization': 'Pictures',
    'dense/detection': 'Detection',
    'dense/segmentation': 'Segmentation',
}
FUNCTIONS = [
    'apis.training.pretrain', 'apis.training.Pretrained',
    'apis.finetuning.finetune', 'apis.finetuning.predict',
    'apis.finetuning.export_model', 'finetuning.model.load_model',
    'finetuning.model.FinetunedModel', 'apis.encoder.load_encoder',
    'apis.encoder.PretrainedEncoder', 'apis.embedding.embed',
    'apis.embedding.Embeddings', 'apis.pictures.reconstruct',
    'apis.pictures.attention', 'apis.pictures.features', 'apis.pictures.views',
    'apis.pictures.map_images', 'apis.pictures.nearest',
    'apis.pictures.report', 'apis.evaluation.knn', 'apis.evaluation.linear',
    'apis.evaluation.low_shot', 'apis.evaluation.dense_knn',
    'apis.evaluation.dense_linear', 'apis.evaluation.frozen',
    'apis.study.study'
]
LANGUAGES = {'.py': 'python', '.sh': 'bash', '.yml': 'yaml', '.yaml': 'yaml'}
# mermaid.js of npm, if installed. Without it diagrams stay text, because the
# theme would load it from a network.
MERMAID = ROOT / 'node_modules/mermaid/dist/mermaid.min.js'
_LINK = re.compile(r'(\]\()([^)\s#]+)(#[^)\s]*)?(\))')
_ROLE = re.compile(r':\w+:(<code>)~?')
_CODE = re.compile(r'^```.*?^```$|`[^`\n]+`', re.M | re.S)


def room_file(room: str) -> str:
    """Return the file that defines ``__all__`` of a package or module."""
    module = f'cmae_mm/{room}.py'
    return module if (ROOT / module).is_file() else (
        f'cmae_mm/{room}/__init__.py')


def public_names(init: Path) -> list[str]:
    """Return ``__all__`` of a package without importing it."""
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and (
                ast.unparse(node.targets[0]) == '__all__'):
            return sorted(ast.literal_eval(node.value))
    raise PluginError(f'{init} has no __all__')


def reference_pages() -> dict[str, str]:
    """Return the reference pages as input of mkdocstrings."""
    pages = {'api/functions.md': '# Functions\n\n' + '\n\n'.join(
        f'::: cmae_mm.{name}' for name in FUNCTIONS)}
    for room, title in ROOMS.items():
        names = public_names(ROOT / room_file(room))
        package = f'cmae_mm.{room.replace("/", ".")}'
        pages[f'api/{Path(room).name}.md'] = '\n\n'.join(
            [f'# {title}', f'`{package}`',
             *(f'::: {package}.{name}' for name in names)])
    return pages


def site_path(path: str) -> str:
    """Return the path in the site of a file of the clone."""
    if path in PAGES:
        return PAGES[path]
    if path == 'README.md':
        return 'index.md'
    if path.startswith('docs/'):
        return path.removeprefix('docs/')
    for room in ROOMS:
        if path == room_file(room):
            return f'api/{Path(room).name}.md'
    if path == 'cmae_mm/__init__.py':
        return 'api/functions.md'
    return f'source/{path}.md'


def clone_path(page: str) -> str:
    """Return the source file of a page of the site."""
    made = {site: path for path, site in PAGES.items()}
    return made.get(page, f'docs/{page}')


def linked_files(path: str, text: str) -> list[str]:
    """Return the files of the clone that a page links to."""
    folder = posixpath.dirname(path)
    return [
        posixpath.normpath(posixpath.join(folder, found[2]))
        for found in _LINK.finditer(_CODE.sub('', text))
        if not re.match(r'\w+:', found[2])
    ]


def read_page(path: str) -> str:
    """Read a file of the clone as Markdown."""
    text = (ROOT / path).read_text()
    if path == NOTEBOOK:
        notebook = jupytext.reads(text, fmt='py:percent')
        notebook.metadata.clear()
        return jupytext.writes(notebook, fmt='md')
    return text


def source_page(path: str) -> str:
    """Return a page with the content of a file."""
    if not (ROOT / path).is_file():
        raise PluginError(f'a page links to {path}, which is not a file')
    language = LANGUAGES.get(Path(path).suffix, 'text')
    return f'# {path}\n\n```{language}\n{(ROOT / path).read_text()}\n```\n'


def on_config(config: Any) -> Any:
    """Add mermaid.js of npm, if installed."""
    if MERMAID.is_file():
        config.extra_javascript.append('assets/mermaid.min.js')
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    made = reference_pages()
    made |= {site: read_page(path) for path, site in PAGES.items()}
    texts = {clone_path(site): text for site, text in made.items()}
    texts |= {f'docs/{f.src_uri}': f.content_string
              for f in files.documentation_pages()}
    for path, text in texts.items():
        for linked in linked_files(path, text):
            site = site_path(linked)
            if site.startswith('source/'):
                made[site] = source_page(linked)
    for site, text in made.items():
        files.append(File.generated(config, site, content=text))
    if MERMAID.is_file():
        files.append(File.generated(config, 'assets/mermaid.min.js',
                                    abs_src_path=str(MERMAID)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any,
                     files: Files) -> str:
    """Replace links between files of the clone by links between pages."""
    here = page.file.src_uri
    if not MERMAID.is_file():
        markdown = re.sub(r'^```mermaid$', '```text', markdown, flags=re.M)
    if here.startswith(('source/', 'api/')):
        return markdown
    folder = posixpath.dirname(clone_path(here))

    def turn(found: 're.Match[str]') -> str:
        before, link, anchor, after = found.groups()
        if re.match(r'\w+:', link):
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, link))
        site = posixpath.relpath(site_path(path), posixpath.dirname(here))
        return f'{before}{site}{anchor or ""}{after}'

    kept: list[str] = []

    def keep(found: 're.Match[str]') -> str:
        kept.append(found[0])
        return f'\0{len(kept) - 1}\0'

    turned = _LINK.sub(turn, _CODE.sub(keep, markdown))
    return re.sub(r'\0(\d+)\0', lambda found: kept[int(found[1])], turned)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Remove Sphinx roles from docstrings."""
    return _ROLE.sub(r'\1', html)
