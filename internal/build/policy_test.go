package build

import (
	"testing"
	"time"
)

func TestPolicy(t *testing.T) {
	disk := func() (int64, int64, error) { return 1000, 500, nil }
	if got := (Policy{NoCollection: true}).gc(disk); got != nil {
		t.Errorf("switched off, yet %v", got)
	}
	def := Policy{}.gc(disk)
	if len(def) != 4 || def[2].ReservedSpace != 100 || def[2].MaxUsedSpace != 600 || def[2].MinFreeSpace != 200 || !def[3].All {
		t.Errorf("default rules: %+v", def)
	}
	limited := Policy{MaxUsed: Space{Percent: 10}, Reserved: Space{Bytes: 7}}.gc(disk)
	if len(limited) != 4 || limited[2].MaxUsedSpace != 100 || limited[2].ReservedSpace != 7 || limited[2].MinFreeSpace != 0 {
		t.Errorf("default rules within limits: %+v", limited)
	}
	own := Policy{Rules: []Rule{{Unused: time.Hour, Filters: []string{"shared"}, MinFree: Space{Percent: 5}}}}.gc(disk)
	if len(own) != 1 || own[0].KeepDuration != time.Hour || own[0].MinFreeSpace != 50 || own[0].Filter[0] != "shared" {
		t.Errorf("own rules: %+v", own)
	}
	if e := (Policy{NoInsecure: true}).entitlements(); len(e) != 1 || e[0] != "network.host" {
		t.Errorf("entitlements: %v", e)
	}
}
