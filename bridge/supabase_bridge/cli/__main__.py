"""`python -m supabase_bridge.cli`: the command line where its script is not on the PATH."""

from supabase_bridge.cli import main

main(prog_name="supabase-bridge")
