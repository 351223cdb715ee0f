"""A Flower app whose sites return their input.

It runs in Flower's environment, not in oncofed's.
"""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, and write when each ended.

    The run's configuration names the file.
    """
    settings = context.run_config
    ends: list[float] = []

    def note(number: int, arrays: ArrayRecord) -> None:
        del number, arrays
        ends.append(time.time())

    sites = int(settings["sites"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    start = ArrayRecord([np.zeros(int(settings["floats"]), np.float32)])
    strategy.start(grid, start, num_rounds=int(settings["rounds"]), evaluate_fn=note)
    Path(str(settings["times"])).write_text(json.dumps(ends), encoding="utf-8")


@client.train()
def train(message: Message, context: Context) -> Message:
    """Return the model as it came."""
    del context
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)
