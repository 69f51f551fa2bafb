package sink

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/onggi/onggi/internal/logs"
)

type journald struct {
	fields  map[string]string
	ordinal uint64
}

func openJournald(_ map[string]string, s Source) (Sink, error) {
	if !journal.Enabled() {
		return nil, errors.New("journald is not enabled on this host")
	}
	var epoch [16]byte
	rand.Read(epoch[:])
	j := &journald{fields: map[string]string{
		"CONTAINER_ID": s.ID(), "CONTAINER_ID_FULL": s.ContainerID, "CONTAINER_NAME": s.Name(), "CONTAINER_TAG": s.Tag, "IMAGE_NAME": s.ContainerImageName,
		"SYSLOG_IDENTIFIER": s.Tag, "CONTAINER_LOG_EPOCH": hex.EncodeToString(epoch[:]),
	}}
	for k, v := range s.Attrs {
		j.fields[journalField(k)] = v
	}
	return j, nil
}

// journalField makes a name of what the journal allows: upper case letters,
// digits and underscores, no underscore in front.
func journalField(k string) string {
	k = strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		}
		return '_'
	}, k)
	return strings.TrimLeft(k, "_")
}

func (j *journald) Write(e logs.Entry) error {
	fields := maps.Clone(j.fields)
	j.ordinal++
	fields["CONTAINER_LOG_ORDINAL"] = strconv.FormatUint(j.ordinal, 10)
	fields["SYSLOG_TIMESTAMP"] = e.Time.Format(time.RFC3339Nano)
	if e.Partial {
		fields["CONTAINER_PARTIAL_MESSAGE"] = "true"
	}
	level := journal.PriInfo
	if e.Stream == "stderr" {
		level = journal.PriErr
	}
	return journal.Send(line(e), level, fields)
}

func (j *journald) Close() error { return nil }
