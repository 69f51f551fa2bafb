package container

import "fmt"

// State is where a container stands in its life.
type State uint8

const (
	Created State = iota
	Starting
	Running
	Paused
	Restarting // ended; starts again after a pause
	Exited
	Removing
	Dead // removal went wrong; it can be tried again
	Gone
	states
)

var stateNames = [states]string{"created", "starting", "running", "paused", "restarting", "exited", "removing", "dead", "gone"}

func (s State) String() string {
	if s < states {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// parseState is the inverse of String; an unknown word is Exited, so that a
// record of a newer engine can at least be listed and removed.
func parseState(s string) State {
	for i, n := range stateNames {
		if n == s {
			return State(i)
		}
	}
	return Exited
}

// HasProcess reports whether the container has a main process.
func (s State) HasProcess() bool { return s == Running || s == Paused }

// Event is what happens to a container.
type Event uint8

const (
	Start Event = iota // someone wants it to run, or its pause before a restart is over
	StartDone
	StartFailed
	Pause
	Unpause
	Exit       // the main process ended, and stays so
	ExitAgain  // the main process ended, and the restart policy wants another
	StayDown   // someone stops it while it waits for a restart
	Remove     // someone wants it removed
	RemoveDone //
	RemoveFailed
	containerEvents
)

var eventVerbs = [containerEvents]string{"start", "finish the start of", "fail the start of", "pause", "unpause", "end", "restart", "stop", "remove", "finish the removal of", "fail the removal of"}

func (e Event) String() string {
	if e < containerEvents {
		return eventVerbs[e]
	}
	return fmt.Sprintf("event %d", uint8(e))
}

// Action is a step that a change of state demands.
type Action uint8

const (
	SpawnInit Action = iota
	FreezeCgroup
	ThawCgroup
	ReleaseResources // network, volumes, cgroup: all that a run holds
	ArmRestart
	DisarmRestart
	WakeNextExit // tell those who wait for the next exit
	DeleteData   // snapshot, files, anonymous volumes
	DeleteRecord
	WakeRemoved // tell those who wait for the removal
)

var actionNames = [...]string{"spawn-init", "freeze-cgroup", "thaw-cgroup", "release-resources", "arm-restart", "disarm-restart", "wake-next-exit", "delete-data", "delete-record", "wake-removed"}

func (a Action) String() string { return actionNames[a] }

// Next is the whole life cycle. A pair that is not listed is an error and
// changes nothing, so a new state or event cannot be forgotten silently.
func Next(s State, e Event) (State, []Action, error) {
	type k struct {
		s State
		e Event
	}
	switch (k{s, e}) {
	case k{Created, Start}, k{Exited, Start}:
		return Starting, []Action{SpawnInit}, nil
	case k{Restarting, Start}:
		return Starting, []Action{DisarmRestart, SpawnInit}, nil
	case k{Starting, StartDone}:
		return Running, nil, nil
	case k{Starting, StartFailed}:
		return Exited, []Action{ReleaseResources, WakeNextExit}, nil
	case k{Running, Pause}:
		return Paused, []Action{FreezeCgroup}, nil
	case k{Paused, Unpause}:
		return Running, []Action{ThawCgroup}, nil
	case k{Running, Exit}, k{Paused, Exit}, k{Starting, Exit}:
		return Exited, []Action{ReleaseResources, WakeNextExit}, nil
	case k{Running, ExitAgain}, k{Paused, ExitAgain}, k{Starting, ExitAgain}:
		return Restarting, []Action{ReleaseResources, WakeNextExit, ArmRestart}, nil
	case k{Restarting, StayDown}:
		return Exited, []Action{DisarmRestart}, nil
	case k{Created, Remove}, k{Exited, Remove}, k{Dead, Remove}:
		return Removing, []Action{DeleteData}, nil
	case k{Restarting, Remove}:
		return Removing, []Action{DisarmRestart, DeleteData}, nil
	case k{Removing, RemoveDone}:
		return Gone, []Action{DeleteRecord, WakeRemoved}, nil
	case k{Removing, RemoveFailed}:
		return Dead, nil, nil
	}
	return s, nil, fmt.Errorf("cannot %v a container that is %v", e, s)
}
