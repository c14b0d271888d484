"""SelfAlign: regions and words are aligned while a dual encoder learns; retrieval stays a matter of inner products."""
