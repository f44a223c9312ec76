"""What a server does beyond the rate at its SLO, as it is served and with queue limits: `brim loadtest --overload`."""
