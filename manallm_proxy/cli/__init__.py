"""The commands, one file each; `manallm_proxy.__main__` reads the arguments."""
