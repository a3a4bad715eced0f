"""What of the supervisor can be seen without processes."""

from service.engine.arena import MOST_FRONTENDS
from service.settings import Settings
from service.supervisor import Supervisor


def test_no_two_front_ends_have_one_number_however_often_the_others_are_replaced() -> None:
    supervisor = Supervisor(Settings())
    supervisor._numbers = {"frontend-1": supervisor._free_number("frontend-1")}
    for _ in range(3 * MOST_FRONTENDS):
        number = supervisor._numbers["frontend-2"] = supervisor._free_number("frontend-2")
        assert 1 <= number <= MOST_FRONTENDS
        assert number != supervisor._numbers["frontend-1"]
    for end in supervisor._wake:
        end.close()
    supervisor._selector.close()
