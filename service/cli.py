"""The command line. Each command is a few lines that call a room; results on stdout, messages on stderr."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.shell_completion import get_completion_class

from service import __version__
from service.collector import resting
from service.errors import StartError
from service.flags import MODEL_SETTINGS, all_settings, form_flag, from_flags, settings_flags
from service.models.catalog import VARIANTS
from service.settings import Settings
from service.working import may_write, working

if TYPE_CHECKING:
    from service import classify as classify_room
    from service import sinks, tables


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="imagenet-serve")
def cli() -> None:
    """ImageNet classification with a VGG or a DenseNet: behind an HTTP port, or right here."""


def _checked(settings: Settings) -> Settings:
    """The same, after a look at what weights and labels are called: a slip is told before torch is imported."""
    from service.models.checkpoints import places
    from service.several import models_of

    for _, own in models_of(settings):
        places.check(own.weights, own.labels)
    return settings


@cli.command()
@all_settings
def serve(**given: Any) -> None:
    """Serve the model over HTTP.

    Every option can also be given as an environment variable: IMAGENET_ and its name in capitals, such
    as IMAGENET_MAX_BATCH_SIZE=32.
    """
    with resting():
        from service.supervisor import Supervisor

    sys.exit(Supervisor(_checked(from_flags(given, warn=False))).run())


#: What `demo` takes where neither a flag nor the environment says otherwise.
_DEMO = {"weights": "demo", "log_format": "text", "log_level": "warning"}


@cli.command()
@settings_flags(Settings.model_fields, defaults=_DEMO)
def demo(**given: Any) -> None:
    """Serve the small model that comes along, and classify its sample photos.

    The server stays up until Ctrl-C, with the page at /. Every option of serve can be given.
    """
    from service import demo as room

    for name, value in _DEMO.items():
        if given[name] is None and f"IMAGENET_{name.upper()}" not in os.environ:
            given[name] = value
    sys.exit(room.run(_checked(from_flags(given, warn=False))))


@cli.command()
@form_flag
def models(form: tables.Form) -> None:
    """List the twelve variants with their size and published accuracy."""
    from service import tables

    rows = [
        {
            "model": variant.name,
            "parameters": variant.parameters,
            "10^9 multiply-adds": variant.gflops,
            "top-1 %": variant.top1,
            "top-5 %": variant.top5,
            "download MiB": variant.download_mb,
        }
        for variant in VARIANTS.values()
    ]
    tables.show(rows, form)


_url_flag = click.option(
    "--url", metavar="URL", help="Ask the server that runs there, in place of a model in this process."
)
_key_flag = click.option(
    "--api-key", metavar="KEY", envvar="IMAGENET_API_KEY", show_envvar=True, help="With --url: its key."
)
_concurrency_flag = click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="With --url: requests at once.",
)


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@settings_flags([*MODEL_SETTINGS, "max_batch_size", "top_k"], server=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    default="table",
    show_default=True,
    help="jsonl is one object a line.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write CSV into FILE, and leave out the images that are in it: a run that was ended goes on.",
)
@_url_flag
@_key_flag
@_concurrency_flag
@click.option(
    "--shard",
    metavar="INDEX/COUNT",
    help="Only every COUNT-th image, from the INDEX-th on, from 0: several runs share one folder.",
)
def classify(
    paths: tuple[str, ...],
    form: sinks.Form,
    resume: Path | None,
    url: str | None,
    api_key: str | None,
    concurrency: int,
    shard: str | None,
    **given: Any,
) -> None:
    """Classify image files, and the images in folders, without a server; - is an image on standard input.

    With --url a running server classifies them, as work that lets its other clients go first.

    Each result is printed as soon as it is there, so Ctrl-C and a pipe that breaks keep what was done. A file that is
    no usable image is named in the output; the exit code is 1 if there was one.
    """
    from service import classify as room

    if paths.count(room.STDIN) > 1:
        raise click.UsageError("standard input can be read once; give - once")
    if url:
        _refuse_model_flags({name: value for name, value in given.items() if name != "top_k"})
    server = room.Server(url, api_key, concurrency) if url else None
    settings = from_flags(given) if url else _checked(from_flags(given))
    sys.exit(room.run(settings, paths, form, resume, server=server, shard=_shard(shard)))


def _shard(text: str | None) -> classify_room.Shard | None:
    from service import classify as room

    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise click.UsageError(f"--shard={text[:50]}: must be like 0/4")
    if not int(index) < int(count):
        raise click.UsageError(f"--shard={text[:50]}: the index goes from 0 to one below the count")
    return room.Shard(int(index), int(count))


def _refuse_model_flags(given: dict[str, Any], *others: str) -> None:
    flags = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if flags or others:
        raise click.UsageError(
            f"{[*flags, *others][0]} is for a model in this process; the one at --url is as it is"
        )


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


_overwrite = click.option("--overwrite", is_flag=True, help="Do not ask before a directory is written over.")


@cli.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--ground-truth", type=_FILE, help="For photos in FOLDER itself: the file with their classes.")
@click.option(
    "--class-list",
    type=_FILE,
    help="map_clsloc.txt or meta.mat, if the ground truth is the development kit's. [default: the one beside it]",
)
@click.option("--limit", type=click.IntRange(1), help="Only so many images, evenly spread over all of them.")
@click.option("--confusions", type=click.IntRange(0), default=10, show_default=True, help="How many to list.")
@click.option("--all", "every", is_flag=True, help="The twelve pretrained variants, one after the other.")
@_url_flag
@_key_flag
@_concurrency_flag
@click.option(
    "--calibrate",
    metavar="DIRECTORY",
    type=click.Path(path_type=Path, file_okay=False),
    help="Fit a temperature on these photos, and write a checkpoint with it, for --weights DIRECTORY.",
)
@_overwrite
@settings_flags([*MODEL_SETTINGS, "max_batch_size"], server=False)
@form_flag
def evaluate(
    folder: Path,
    ground_truth: Path | None,
    class_list: Path | None,
    limit: int | None,
    confusions: int,
    every: bool,
    url: str | None,
    api_key: str | None,
    concurrency: int,
    calibrate: Path | None,
    overwrite: bool,
    form: tables.Form,
    **given: Any,
) -> None:
    """Measure top-1 and top-5 over labelled photos, beside the published figures.

    The calibration error says how far probabilities are from how often they are right. --calibrate makes them
    agree: take photos that had no part in the training and are none of those that you judge the model by.

    FOLDER has one sub-folder a class, named by WordNet id, label or class_id; or it is ImageNet's flat
    validation set, with its ground truth in FOLDER, beside it, or given. Classes that the model does not know
    are left out. The exit code is 1 if there were images that could not be judged.
    """
    from service import evaluate as room

    if url:
        _refuse_model_flags(given, *(["--all"] if every else []))
    if every and (given["model"] or given["weights"]):
        raise click.UsageError("--all takes the twelve pretrained variants; leave out --model and --weights")
    if calibrate and (url or every):
        raise click.UsageError("--calibrate is for one model in this process; leave out --url and --all")
    if calibrate:
        may_write(calibrate, overwrite=overwrite)
    task = room.Task(folder, ground_truth, class_list, limit, confusions, form, calibrate)
    if url:
        sys.exit(room.over_http(task, url, api_key, concurrency))
    settings = _checked(from_flags(given))
    sys.exit(room.in_process(task, room.all_variants(settings) if every else [settings]))


@cli.command()
@all_settings
@click.option("--json", "as_json", is_flag=True, help="For programs: the findings as JSON.")
def doctor(as_json: bool, **given: Any) -> None:
    """Check this host for serving with these settings, and say what to do about what is wrong.

    Takes the options and the environment of serve. Nothing is changed, and the network is used only to ask
    for weights that are not here. The exit code is 1 if a check says FAIL.
    """
    from service import doctor as room

    sys.exit(room.run(room.examine(from_flags(given, warn=False)), as_json=as_json))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash:  eval "$(imagenet-serve completion bash)"       in ~/.bashrc
    zsh:   eval "$(imagenet-serve completion zsh)"        in ~/.zshrc, after compinit
    fish:  imagenet-serve completion fish | source        in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "imagenet-serve", "_IMAGENET_SERVE_COMPLETE").source())


@cli.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--calibrate",
    required=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Images of the kind that will be served, in any subfolders: a few hundred.",
)
@click.option(
    "--force", is_flag=True, help="Write it even when the models agree on less than 98 % of the images."
)
@settings_flags(["model", "weights", "labels", "max_image_pixels"], server=False)
@_overwrite
def quantize(out: Path, calibrate: Path, force: bool, overwrite: bool, **given: Any) -> None:
    """Make an int8 artifact of a model, for --runtime OUT.

    On the CPU it runs several times as fast. How often its top class is that of the fp32 model is measured
    on images of FOLDER that had no part in the calibration, and written into the artifact.
    """
    from service import quantize as room

    may_write(out, overwrite=overwrite)
    sys.exit(room.run(_checked(from_flags(given)), calibrate, out, force=force))


@cli.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@settings_flags(
    ["model", "weights", "labels", "device", "precision", "runtime", "max_batch_size"], server=False
)
@_overwrite
def export(out: Path, overwrite: bool, **given: Any) -> None:
    """Prepare a model ahead of time.

    With --runtime openvino: converted for a CPU, for --weights OUT; serving it needs neither torch nor the original
    weights. Else compiled for this kind of device and version of torch, for --runtime OUT; that is refused
    elsewhere, and holds machine code: serve those that you made yourself.
    """
    from service import export as room

    may_write(out, overwrite=overwrite)
    sys.exit(room.run(_checked(from_flags(given)), out))


@cli.command()
@click.argument("source")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@settings_flags(["model", "labels"], server=False)
@_overwrite
def convert(source: str, directory: Path, overwrite: bool, **given: Any) -> None:
    """Write any weights that the service reads, SOURCE, into a checkpoint DIRECTORY of its own format.

    SOURCE is whatever the setting weights takes. The directory holds the configuration, the preprocessing
    and the classes in one JSON file beside the tensors, and needs neither hub nor HDF5 to be served.
    """
    settings = _checked(from_flags({**given, "weights": source}))
    may_write(directory, overwrite=overwrite)
    from service.models import loader
    from service.models.checkpoints import resolve, write

    with working(f"reading {source}") as work:
        checkpoint = resolve(
            settings.weights, settings.named_model, labels=settings.labels, progress=work.downloaded
        )
        loader.load(checkpoint)  # what makes no network is not written
        work.say(f"writing {directory}")
        write(checkpoint, directory)
        loader.load(resolve(str(directory), settings.named_model))
    click.echo(f"{directory}: {checkpoint.name} from {checkpoint.source}", err=True)


@cli.command()
@click.argument("url")
@click.option(
    "--photo",
    "photos",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="What to send; several are sent in turn. [default: a made one]",
)
@click.option("--size", metavar="WxH", default="500x375", show_default=True, help="Of the made photo.")
@click.option("--clients", type=click.IntRange(1), metavar="N", help="Closed loop: N at once. [default: 8]")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="R", help="Open loop: R a second.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True)
@click.option(
    "--warm-up", type=click.FloatRange(0), default=0.0, help="Seconds at the start that do not count."
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True)
@click.option("--raw/--form", default=True, help="The photo as the raw body, or as a form. [default: raw]")
@click.option("--header", "-H", "headers", multiple=True, metavar="LINE", help="Such as 'X-API-Key: KEY'.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def bench(
    url: str,
    photos: tuple[str, ...],
    size: str,
    clients: int | None,
    rate: float | None,
    duration: float,
    warm_up: float,
    timeout: float,
    raw: bool,
    headers: tuple[str, ...],
    form: Literal["table", "json"],
) -> None:
    """Put load on the service at URL and show its throughput and latency.

    With --clients each client asks again when it has its answer (closed loop). With --rate requests leave
    at random moments whatever the answers do (open loop, Poisson), and a latency counts from the moment
    when the request was due: what users see of a server that falls behind.
    """
    from service import bench as room

    if clients is not None and rate is not None:
        raise click.UsageError("--clients and --rate are two kinds of load; give one")
    try:
        width, height = (int(side) for side in size.lower().split("x"))
        pictures = [Path(photo).read_bytes() for photo in photos] or [room.synthetic_photo(width, height)]
        plan = room.plan(
            url,
            pictures,
            room.Upload(form=not raw, headers=headers),
            duration=duration,
            clients=clients or 8,
            rate=rate,
            warm_up=warm_up,
            timeout=timeout,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(room.run(plan, form))


#: What the sweep leaves as the user wants it.
_FIXED_BY_THE_USER = ("model", "weights", "labels", "device", "precision", "decode", "max_image_pixels")


@cli.command()
@click.option(
    "--p99",
    "objective_ms",
    required=True,
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="The latency that 99 of 100 requests must not exceed, in milliseconds.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("plan"),
    show_default=True,
    help="The folder for the env file, resource requests, autoscaler values and the reasons.",
)
@click.option("--quick", is_flag=True, help="Fewer and shorter measurements: a minute or two, and rougher.")
@click.option(
    "--budget",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Begin no new trial after this long. [default: 420, with --quick 100]",
)
@click.option(
    "--photo",
    "photos",
    multiple=True,
    type=_FILE,
    help="What clients will send; several in turn. [default: a made JPEG of 500x375]",
)
@click.option(
    "--runtime", "runtimes", multiple=True, metavar="VALUE", help="Compare these. [default: all here]"
)
@settings_flags(_FIXED_BY_THE_USER, server=False)
def plan(
    objective_ms: float,
    out: Path,
    quick: bool,
    budget: float | None,
    photos: tuple[Path, ...],
    runtimes: tuple[str, ...],
    **given: Any,
) -> None:
    """Measure this machine and propose settings that keep a latency.

    Real servers run one after the other on loopback, under load: runtimes, batch sizes, front-ends, delays. Let
    nothing else run meanwhile. The exit code is 1, and nothing is written, if no setting keeps --p99.
    """
    from service import bench
    from service import plan as room

    settings = _checked(from_flags(given))
    fixed = {name: value for name in _FIXED_BY_THE_USER if (value := getattr(settings, name)) is not None}
    defaults = Settings.model_fields
    kept = {name: value for name, value in fixed.items() if value != defaults[name].default}
    if settings.named_model or settings.weights == "pretrained":
        kept["model"] = settings.model
    pictures = [photo.read_bytes() for photo in photos] or [bench.synthetic_photo(500, 375)]
    sys.exit(
        room.run(
            objective_ms,
            {"weights": settings.weights, **kept},
            runtimes or room.runtimes(settings.device),
            pictures,
            out,
            quick=quick,
            budget=budget if budget is not None else room.QUICK_BUDGET if quick else room.BUDGET,
        )
    )


@cli.command()
@click.argument("url")
@click.option("--model", help="The variant of the new weights. [default: as it is]")
@click.option("--weights", help="What to load, as the server finds it. [default: the same, read again]")
@click.option("--name", help="Which of several models. [default: the server's default]")
@click.option(
    "--other-classes", is_flag=True, help="The new model may have other classes than the one that serves."
)
@click.option(
    "--least-agreement",
    type=click.FloatRange(0, 1),
    help="The share of known images that must get the same top class. [default: 0]",
)
@click.option("--no-wait", is_flag=True, help="Do not wait for the end of it.")
@click.option("--rollback", is_flag=True, help="Go back to the model before the last switch, at once.")
@click.option(
    "--api-key", metavar="KEY", envvar="IMAGENET_API_KEY", show_envvar=True, help="The server's key."
)
def switch(url: str, *, rollback: bool, api_key: str | None, no_wait: bool, **given: Any) -> None:
    """Let the server at URL answer with another model, without a gap.

    The new one is loaded beside the old one, has to answer known images, and takes its place at one moment. A load
    that fails changes nothing, and the exit code is 1. For a server with API keys, or with --model-control=open.
    """
    from service import switching

    asked = {name: value for name, value in given.items() if value not in (None, False)}
    if no_wait:
        asked["wait"] = False
    if rollback and asked.keys() - {"name"}:
        raise click.UsageError("--rollback goes with --name alone")
    click.echo(switching.sentence(switching.order(url, rollback=rollback, key=api_key, wish=asked)))


def main() -> None:
    """The entry point: one sentence and exit code 1 for whatever cannot be done, 2 for wrong usage."""
    # Processes are forked from here, and a fork wants no threads: NumPy's matrix library would start some.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        cli(prog_name="imagenet-serve", standalone_mode=True)
    except StartError as error:
        click.echo(f"imagenet-serve: {error}", err=True)
        sys.exit(1)
