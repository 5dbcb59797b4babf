"""Tests of `supabase_bridge.announce`."""
