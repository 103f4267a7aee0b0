"""A page of a template in mot/reporting/templates, with its figures inside.

    html = page("run.html.j2", title="a run", figures=write_figures(folder, FIGURES, metrics))

A page requests nothing from a server and runs no script. It can be mailed, and it is safe to open whatever texts are in
it. Values are escaped.
"""


def page(template: str, **values) -> str:
    """The page as text; every template extends base.html.j2."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("mot.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
