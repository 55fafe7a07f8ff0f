"""`python -m tools.demo [--model=DIR]`: a web page on this machine alone, to try a model; by default the shipped one.

Type a prompt and see the picture fill in step by step; drop a picture and see its caption, and what the other beams
found; press "cycle". Ctrl-C ends it.
"""

import dataclasses

from absl import flags

from itit import flags as flags_lib
from tools.generation import demo_server, generation

DEFAULT = "scenes"


def define_flags():
    flags_lib.define(generation.Loading())
    flags.DEFINE_integer("port", 8000, "Port at 127.0.0.1; 0: any free one.", lower_bound=0, upper_bound=65535)


def main(_):
    loading = flags_lib.from_flags(generation.Loading())
    if not loading.model and not loading.workdir:
        loading = dataclasses.replace(loading, model=DEFAULT)
    model = generation.load(loading)
    with demo_server.make_server(model, flags.FLAGS.port) as server:
        print(f"http://{demo_server.ADDRESS}:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
