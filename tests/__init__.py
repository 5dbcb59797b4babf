"""Tests of supabase-bridge."""
