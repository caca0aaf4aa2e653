"""The sub-commands of `dp-curriculum`, one file each."""
