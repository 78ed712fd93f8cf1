window.YTD.tweets.part0 = [
  {
    "tweet" : {
      "edit_info" : { "initial" : { "editTweetIds" : [ "1050118621198921728" ], "editsRemaining" : "5", "isEditEligible" : true } },
      "retweeted" : false,
      "source" : "<a href=\"https://web.example\" rel=\"nofollow\">Web</a>",
      "entities" : {
        "hashtags" : [ { "text" : "tomatoes", "indices" : [ "50", "59" ] } ],
        "symbols" : [ ],
        "user_mentions" : [ ],
        "urls" : [ { "url" : "https://t.co/aaaa", "expanded_url" : "https://seeds.example/heirloom", "display_url" : "seeds.example/heirloom", "indices" : [ "60", "83" ] } ]
      },
      "favorite_count" : "14",
      "id_str" : "1050118621198921728",
      "retweet_count" : "3",
      "id" : "1050118621198921728",
      "created_at" : "Wed Oct 10 20:19:24 +0000 2018",
      "favorited" : false,
      "full_text" : "Last basket of the year: 4 kg &amp; still ripening. #tomatoes https://t.co/aaaa",
      "lang" : "en"
    }
  },
  {
    "tweet" : {
      "entities" : { "hashtags" : [ ], "urls" : [ ], "user_mentions" : [ { "screen_name" : "compost_club" } ] },
      "extended_entities" : {
        "media" : [ { "type" : "photo", "media_url_https" : "https://pics.example/media/worms.jpg" } ]
      },
      "favorite_count" : "2",
      "in_reply_to_status_id_str" : "1050118621198921728",
      "in_reply_to_screen_name" : "mira_gardens",
      "id_str" : "1050481009198921729",
      "retweet_count" : "0",
      "created_at" : "Thu Oct 11 20:19:24 +0000 2018",
      "full_text" : "Worm report for @compost_club: { \"brackets\": [\"too\"] } and a \\ in one line.",
      "lang" : "en"
    }
  },
  {
    "tweet" : {
      "entities" : { "urls" : [ ] },
      "favorite_count" : "0",
      "id_str" : "1050843397198921730",
      "retweet_count" : "41",
      "created_at" : "Fri Oct 12 20:19:24 +0000 2018",
      "full_text" : "RT @compost_club: Leaves are gold. Keep them.",
      "lang" : "en"
    }
  }
];
