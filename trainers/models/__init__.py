"""Networks: tensors in, tensors out. They read no files and import nothing of ours outside but Batch."""
