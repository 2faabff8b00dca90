"""The chassis that every Evenload service stands on; it imports none of them."""
