"""What rendered chains do with a packet: a pure model of netfilter's walk, to check and to explain the rules by."""

from calipy.felix.walk.packet import Before, Packet, Step, Verdict, Walk, WalkError
from calipy.felix.walk.walker import TableView, walk

__all__ = ["Before", "Packet", "Step", "TableView", "Verdict", "Walk", "WalkError", "walk"]
