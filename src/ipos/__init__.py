"""IPOS, the InterPlanetary Operating System: many people's PCs become one computer."""
