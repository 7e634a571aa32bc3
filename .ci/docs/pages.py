"""Pages of the documentation, made when it is built: from the READMEs, examples and docstrings.

The reference has a page a public module. What is public is what `__all__` says, else every
function and class without a leading underscore, and every constant with a docstring.
"""

from __future__ import annotations

import ast
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "optuna_merge"
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "studies/DECISIONS.md")
HIDDEN = {".github/SECURITY.md": "SECURITY.md"}
"""Texts in folders that mkdocs leaves out, and where they are on the site."""
COMMAND_LINE = (f"{PACKAGE}.cli", f"{PACKAGE}.commands")  # has a page of its own

FEW = 3
"""Examples that a page shows without a table of them."""

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
"""What a relative link of a Markdown text leads to, without the anchor."""
_CODE = re.compile(
    r"<(?P<tag>a|autoref|pre|h\d)\b.*?</(?P=tag)>|<code>(?P<name>[\w.]+)(?:\(\))?</code>", re.S
)


def in_order(page: str, names: list[str], after: str = "") -> list[str]:
    """Names of files in the order in which a page links to them, then the others."""
    folder, text = (ROOT / page).parent, (ROOT / page).read_text().partition(after or "# ")[2]
    linked = [(folder / link).resolve() for link in LINK.findall(text)]
    place = {path: i for i, path in reversed(list(enumerate(linked)))}
    return sorted(names, key=lambda name: (place.get(ROOT / name, len(linked)), name))


def guides() -> list[str]:
    """READMEs of the package's rooms, in the order in which README links to them."""
    found = (ROOT / PACKAGE).rglob("README.md")
    names = [path.relative_to(ROOT).as_posix() for path in found]
    return in_order("README.md", names, after="## Where to read on")


def studies() -> list[str]:
    """The READMEs of the studies, that of all first, in the order in which it links to them."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "studies").rglob("README.md")
        if not {"workdir", ".cache"} & set(path.parts)
    ]
    first = "studies/README.md"
    return [first, *in_order(first, [name for name in found if name != first])]


def example_folders() -> list[Path]:
    """Folders of examples that have a page each."""
    others = ("optunahub", "tiny", "tutorials")
    return sorted(p for p in (ROOT / "examples").glob("[a-z]*/") if p.name not in others)


def hub_packages() -> list[str]:
    """The READMEs of the packages for OptunaHub."""
    found = (ROOT / "examples" / "optunahub").glob("*/*/README.md")
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def tutorials() -> list[str]:
    """The tutorials, the first one for beginners."""
    found = sorted(path.name for path in (ROOT / "examples" / "tutorials").glob("*.md"))
    return [f"examples/tutorials/{n}" for n in sorted(found, key=lambda n: n != "texts.md")]


def title(name: str) -> str:
    """What a page is called in the navigation: its title or heading up to a colon."""
    found = re.search(r"^(?:title:|#) ([^:\n]*)", (ROOT / name).read_text(), re.M)
    return found[1] if found else name


@cache
def public_modules() -> dict[str, griffe.Module]:
    """Modules of the package without a leading underscore, by path."""

    def walk(module: griffe.Module) -> Iterator[griffe.Module]:
        yield module
        for name, inner in sorted(module.modules.items()):
            if not name.startswith("_") and inner.path not in COMMAND_LINE:
                yield from walk(inner)

    package = griffe.load(PACKAGE, search_paths=[ROOT])
    return {module.path: module for module in walk(package)}


def public_names(module: griffe.Module) -> list[str]:
    """Names that a module offers, in the order of `__all__`, or of the file."""
    if module.exports is not None:
        return [str(name) for name in module.exports]
    return [
        name
        for name, member in module.members.items()
        if not name.startswith("_")
        and not member.is_alias
        and (member.is_function or member.is_class or member.docstring)
    ]


def summary(thing: griffe.Object | griffe.Alias) -> str:
    """The first sentence or line of its docstring."""
    text = thing.docstring.value if thing.docstring else ""
    return text.strip().split("\n\n")[0].replace("\n", " ")


def home(name: str, found: griffe.Object | griffe.Alias) -> str:
    """The public path under which a name of the package itself is documented."""
    path = found.target_path if found.is_alias else found.path
    return f"{'.'.join(p for p in path.split('.')[:-1] if not p.startswith('_'))}.{name}"


def module_page(module: griffe.Module) -> str:
    """The page of one module: its docstring, and everything public in it."""
    lines = [f"# `{module.path}`", "", module.docstring.value if module.docstring else "", ""]
    names = public_names(module)
    if module.path == PACKAGE:  # its names live elsewhere, each in one place
        lines += ["| name | what it is |", "|---|---|"]
        for name in names:
            if name != "__version__":
                text = summary(module[name])
                link = f"[`{name}`][{home(name, module[name])}]"
                lines.append(f'| <span class="names">{link}</span> | {text} |')
        return "\n".join([*lines, ""])
    if "FAMILIES" in names:
        lines += family_table()
    return "\n".join(lines + [f"::: {module.path}.{name}\n" for name in names])


def family_table() -> list[str]:
    """What `PosteriorSettings(family=...)` may be, from the registry."""
    from optuna_merge.posteriors import FAMILIES

    rows = [
        f"| `{family.name}` | {family.summary} | `{family.gaussian.__name__}` |"
        for family in FAMILIES.values()
    ]
    return ["| family | what it is | its posteriors |", "|---|---|---|", *rows, ""]


def command_page() -> str:
    """The page of the command line: every command with its flags."""
    from typer.main import get_command

    from optuna_merge.cli import app

    group: Any = get_command(app)
    guide = "[commands](../optuna_merge/commands/README.md)"
    lines = [
        "# Command line",
        "",
        f"Output, exit codes and extras are in the guide to {guide}.",
        "",
    ]
    for name, command in group.commands.items():
        lines += [
            f"## optuna-merge {name}",
            "",
            re.sub(r"^Example: (.*)$", r"```bash\n\1\n```", command.help, flags=re.M),
            "",
            "| argument or flag | what it does |",
            "|---|---|",
        ]
        for parameter in command.params:
            default = parameter.default
            told = parameter.help or ""
            if default not in (None, False) and not callable(default) and not parameter.required:
                told += f" Default: `{default}`."
            names = " ".join(f"`{o}`" for o in [*parameter.opts, *parameter.secondary_opts])
            flags = f'<span class="names">{names}</span>'
            lines.append(f"| {flags} | {told} |")
        lines.append("")
    lines += ["## Scripts with the same flags", "", f"::: {PACKAGE}.cli.script", ""]
    return "\n".join(lines)


def index_page(heading: str, page: str, names: list[str]) -> str:
    """A page that leads to others: what each is called, and what it is about."""
    lines = [f"# {heading}", "", "| page | what it is about |", "|---|---|"]
    for name in names:
        about = re.search(r"^(?:description: |# [^:\n]*: )(.*)$", (ROOT / name).read_text(), re.M)
        link = os.path.relpath(name, Path(page).parent)
        lines.append(f"| [{title(name)}]({link}) | {about[1] if about else ''} |")
    return "\n".join([*lines, ""])


def example_page(folder: Path) -> str:
    """The page of a folder of examples: what each shows, and its text."""
    index, lines = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".py", ".sh", ".yaml"):
            about, text = "", path.read_text().rstrip()
            if path.suffix == ".py":
                first = ast.parse(text).body[0]
                about = (ast.get_docstring(ast.parse(text), clean=False) or "").strip()
                text = "\n".join(text.split("\n")[first.end_lineno :]).strip()
            lines += [f"## {path.name}", "", about, "", f"```{path.suffix[1:]}", text, "```", ""]
            shown = " ".join(about.split("\n\n")[0].split())
            index.append(f"| [{path.name}](#{path.name.replace('.', '')}) | {shown} |")
    head = [f"# {folder.name.capitalize()}", ""]
    if len(index) > FEW:
        head += ["| example | what it shows |", "|---|---|", *index, ""]
    return "\n".join([*head, *lines])


def indexes() -> dict[str, tuple[str, list[str]]]:
    """Pages that lead to the pages of a section: their headings, and where they lead."""
    return {
        "guide/README.md": ("Guide", guides()),
        "tutorials/README.md": ("Tutorials", tutorials()),
        "examples/optunahub/README.md": ("Packages for OptunaHub", hub_packages()),
    }


def pages() -> dict[str, str]:
    """All pages: path on the site, as if it were one in the repository, and Markdown text."""
    made = {
        name: (ROOT / name).read_text()
        for name in (*TEXTS, *tutorials(), *guides(), *studies(), *hub_packages())
    }
    made |= {place: (ROOT / name).read_text() for name, place in HIDDEN.items()}
    for folder in (ROOT / "examples", *example_folders()):
        made[f"{folder.relative_to(ROOT).as_posix()}/README.md"] = example_page(folder)
    for page, (heading, names) in indexes().items():
        made[page] = index_page(heading, page, names)
    made["reference/command_line.md"] = command_page()
    for path, module in public_modules().items():
        name = path.partition(".")[2] or "README"
        made[f"reference/{name}.md"] = module_page(module)
    return made


def linked_files(texts: dict[str, str]) -> set[str]:
    """Files of the repository that the pages link to and that are no pages themselves."""
    found = set()
    for page, text in texts.items():
        for target in LINK.findall(text):
            path = (ROOT / page).parent.joinpath(target).resolve()
            if path.is_file():
                found.add(path.relative_to(ROOT).as_posix())
    return found - texts.keys() - HIDDEN.keys()


def section(page: str) -> list[Any]:
    """A section of the navigation: its index, then what this leads to."""
    return [page, *({title(name): name} for name in indexes()[page][1])]


def on_config(config: Any) -> Any:
    """mkdocs: the order of the pages."""
    reference = [f"reference/{path.partition('.')[2] or 'README'}.md" for path in public_modules()]
    config.nav = [
        {"Home": "README.md"},
        {"Tutorials": section("tutorials/README.md")},
        {"Guide": section("guide/README.md")},
        {
            "Examples": [
                "examples/README.md",
                *(
                    {f.name.capitalize(): f"examples/{f.name}/README.md"}
                    for f in example_folders()
                ),
                {"OptunaHub": section("examples/optunahub/README.md")},
            ]
        },
        {"Command line": "reference/command_line.md"},
        {"Reference": [{Path(p).stem: p} if p != "reference/README.md" else p for p in reference]},
        {"Studies": [studies()[0], *({title(name): name} for name in studies()[1:])]},
        *({title(name): name} for name in ("studies/DECISIONS.md", *TEXTS[1:3])),
        *({title(name): place} for name, place in HIDDEN.items()),
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: the pages in place of what lies in its folder, and the files that they show."""
    from mkdocs.structure.files import File, Files

    made = pages()
    found = [file for file in files if file.src_dir != config.docs_dir]  # the theme's
    found += [File.generated(config, name, content=text) for name, text in made.items()]
    found += [
        File.generated(config, name, abs_src_path=str(ROOT / name))
        for name in sorted(linked_files(made))
    ]
    style = Path(__file__).with_name("extra.css")
    found.append(File.generated(config, style.name, abs_src_path=str(style)))
    return Files(found)


def on_post_build(config: Any) -> None:
    """mkdocs: fails where a public name is not in the reference."""
    from mkdocs.exceptions import PluginError

    for path, module in public_modules().items():
        page = Path(config.site_dir, "reference", path.partition(".")[2], "index.html").read_text()
        for name in public_names(module) if path != PACKAGE else ():
            if f'id="{path}.{name}"' not in page or not module[name].docstring:
                raise PluginError(f"{path}.{name} has no docstring, or is not in the reference")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs: a link to a folder leads to its page."""

    def to_page(link: re.Match[str]) -> str:
        path = (ROOT / page.file.src_uri).parent / link[1]
        if link[1] in HIDDEN:
            return HIDDEN[link[1]]
        return f"{link[1].rstrip('/')}/README.md" if path.is_dir() else link[1]

    return LINK.sub(to_page, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """mkdocs: public names in `code` are links to where they are documented.

    Outside of the reference a plain word is none: there `fit` is a command, and `evaluate` a
    method of somebody else's Trainer.
    """
    in_reference = page.file.src_uri.startswith("reference/")

    def linked(code: re.Match[str]) -> str:
        name = code["name"] or ""
        target = _targets().get(name.removeprefix("om."))
        is_plain = name.isalpha() and name.islower() and "()" not in code[0]
        if target is None or (is_plain and not in_reference):
            return code[0]
        return f'<autoref identifier="{target}">{code[0]}</autoref>'

    return _CODE.sub(linked, html)


def on_post_page(output: str, **_: Any) -> str:
    """mkdocs: the theme's search has a name for screen readers."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


@cache
def _targets() -> dict[str, str]:
    """Where names are documented, by long name, and by short name where one module has it."""
    long, short = {}, defaultdict(list)
    for path, module in public_modules().items():
        for name in public_names(module) if path != PACKAGE else ():
            target = f"{path}.{name}"
            long[target] = long[target.removeprefix(f"{PACKAGE}.")] = target
            short[name].append(target)
    return long | {name: found[0] for name, found in short.items() if len(found) == 1}
