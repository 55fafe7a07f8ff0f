"""`python -m tools.push_to_hub --model=EXPORT --name=OWNER/NAME`: an export, with its card, to the Hugging Face Hub.

Log in with `hf auth login` first, or set HF_TOKEN. Every file is compared with the export's hashes before it goes.
`ITIT.from_pretrained("OWNER/NAME")` loads it.
"""

from absl import flags

from itit import flags as flags_lib


def main(_):
    from itit.checkpoint import hub  # needs huggingface_hub, and says so in one line

    flag = flags.FLAGS
    print(hub.push(flag.model, flag.name, flag.private))


def define_flags():
    flags.DEFINE_string("model", None, "Folder that tools.export wrote.", required=True)
    flags.DEFINE_string("name", None, "OWNER/NAME of the repository, made where it is not there.", required=True)
    flags.DEFINE_boolean("private", False, "A repository that is made is private.")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
