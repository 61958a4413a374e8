"""What `import tastemaker as tm` offers to Python programs: training, sampling and evaluation, and what runs leave."""
